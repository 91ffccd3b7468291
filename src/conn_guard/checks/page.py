"""The reference page of the checks, made from the table that the code runs: this room holds its
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from conn_guard.checks import server, settings  # noqa: F401 - they fill the table
from conn_guard.checks.table import RETIRED, RULES, Rule

LEVELS = {"E": "Error", "W": "Warning", "I": "Info"}
SECTIONS = {"0": "CONN_GUARD", "1": "DATABASES", "2": "MIDDLEWARE", "3": "The server"}
INTRODUCTION = """\
# System checks

This page is made from the table that the code runs: `python -m conn_guard.checks > docs/reference/checks.md`.

`manage.py check` runs every check whose number begins with 0, 1 or 2, and so do `migrate`, `runserver` and `test`.
They read the values in the settings, for every alias and every engine; they connect to nothing and import no engine.

`manage.py check --database default` also asks the server of that alias; so does `migrate`.
`manage.py check --deploy --database default` asks for W303, W304, I305 and W307 as well.
No check of the server is an Error, and a server that can't be asked is an Info (I302).

A server process runs no checks: neither gunicorn nor uvicorn does it.
So the middleware logs what the static checks find when a handler is made, once a process, on the logger `conn_guard.checks`.
Where the middleware is absent the first request logs it.
`CONN_GUARD["CHECK_AT_STARTUP"]` is `"log"`, `"raise"` to refuse to start on an Error, or `None` for silence.
Nothing is logged where a command has printed it already, and nothing in tests.

What settings can't tell is said by the process itself, once, on the same logger and under the same ids.
W120: persistent connections under ASGI or greenlets, or nearly every request opens one although CONN_MAX_AGE is set.
I302: the process id that came with the log-in can't be one, so a pooler made it up.

Silence a check with its whole id: `SILENCED_SYSTEM_CHECKS = ["conn_guard.I201"]`.
That holds for the log, too.
No message holds a password: values are shown only where none can stand.
"""


def page() -> str:
    """Return docs/reference/checks.md."""
    parts = [INTRODUCTION]
    for digit, title in SECTIONS.items():
        parts.append(f"## {title}\n")
        # In the order of their numbers, whatever their level.
        rules = sorted(RULES.values(), key=lambda rule: rule.id[1:])
        parts += ["\n".join(_paragraph(rule)) for rule in rules if rule.id[1] == digit]
    if RETIRED:
        parts.append("## Retired\n")
        parts += [f"### {each}\n\n{text}\n" for each, text in sorted(RETIRED.items())]
    return "\n".join(parts)


def _paragraph(rule: Rule) -> Iterator[str]:
    yield f"### {rule.id}\n"
    yield f"`{rule.slug}`, {LEVELS[rule.id[0]]}.\n"
    yield f"{_sentences(rule.why)}\n"
    yield f"**What Django does.** {_sentences(rule.django)}\n"
    yield f"**Cure.** {_sentences(rule.cure)}\n"
    yield f'**Silence.** `SILENCED_SYSTEM_CHECKS = ["conn_guard.{rule.id}"]`\n'


def _sentences(text: str) -> str:
    """Return *text* with each sentence on a line of its own."""
    return re.sub(r"(?<=[.!?]) ", "\n", " ".join(text.split()))
