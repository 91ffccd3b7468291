"""The reference page of the checks, made from the table that the code runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from conn_guard.checks.registry import RETIRED, Rule, Subject, address
from conn_guard.checks.rules import RULES

LEVELS = {"E": "Error", "W": "Warning", "I": "Info"}
COMMANDS: dict[Subject, str] = {
    "project": "manage.py check",
    "alias": "manage.py check",
    "reaping": "manage.py check --database ALIAS",
    "session": "manage.py check --database ALIAS",
    "no answer": "manage.py check --database ALIAS",
    "deployment": "manage.py check --deploy --database ALIAS",
    "capacity": "manage.py check --deploy --database ALIAS",
}
SECTIONS = {"0": "CONN_GUARD", "1": "DATABASES", "2": "MIDDLEWARE", "3": "The server"}
INTRODUCTION = """\
# System checks

This page is made from the table that the code runs: `python -m conn_guard.checks > docs/reference/checks.md`.
`conn-guard check E101` prints the paragraph about E101, without a network.

## When they run

`manage.py check` runs every check whose number begins with 0, 1 or 2, and so do `migrate`, `runserver` and `test`.
These checks read the values in the settings, for every alias and every engine; they connect to nothing and import no engine.
I201 is reported by `manage.py check` alone, and logged once when a server starts.

`manage.py check --database default` also asks the server of that alias; so does `migrate`.
`manage.py check --deploy --database default` asks for W303, W304, I305 and W307 as well; neither option alone does.
No check of the server is an Error, and a server that can't be asked is an Info (I309).

A server process runs no checks: gunicorn, uvicorn and the other servers don't start them.
So the middleware logs the findings of the static checks when a handler is made, once a process, on the logger `conn_guard.checks`.
Where the middleware is absent the first request logs them.
`CONN_GUARD["CHECK_AT_STARTUP"]` is `"log"`, `"raise"` to refuse to start on an Error, or `None` for silence.
A finding that a command has printed is not logged again, and nothing is logged in tests.

A serving process reports two more facts once, on the same logger and under the same ids.
W120: persistent connections under ASGI or greenlets, or nearly every request opens one although CONN_MAX_AGE is set.
I302: the number received at login can't be a process id, so a pooler made it up.

Silence a check with its whole id: `SILENCED_SYSTEM_CHECKS = ["conn_guard.I201"]`.
The log is silenced with it.
No message holds a password: a value is shown only where it can't be one.
"""


def page() -> str:
    """Return docs/reference/checks.md."""
    parts = [INTRODUCTION]
    for digit, title in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += ["\n".join(_paragraph(rule)) for rule in RULES.values() if rule.id[1] == digit]
    if RETIRED:
        parts.append("## Retired\n")
        parts += [f"### {each}\n\n{text}\n" for each, text in sorted(RETIRED.items())]
    return "\n".join(parts)


def explain(name: str) -> str:
    """Return the paragraph about the check *name*, such as ``E101``, as plain text.

    Raises LookupError, with the ids that are near, if there is no such check.
    """
    words = {id.lower(): id for id in (*RULES, *RETIRED)}  # noqa: A001
    asked = name.lower().removeprefix("conn_guard.")
    id = words.get(asked)  # noqa: A001
    if id is None:
        raise LookupError(f"There is no check {name!r}. Near it: {', '.join(_near(asked))}.")
    lines = _paragraph(RULES[id]) if id in RULES else (f"### {id}\n", f"{RETIRED[id]}\n")
    text = "\n".join(lines).replace("### ", "conn_guard.").replace("**", "").replace("`", "")
    return f"{text}\nPage: {address(id)}\n"


def _near(name: str) -> list[str]:
    """Return the ids of the checks whose number or slug is nearest to *name*."""
    slugs = {rule.slug: id for id, rule in RULES.items()}  # noqa: A001
    if alike := get_close_matches(name, slugs, cutoff=0.5):
        return [slugs[each] for each in alike]
    number = int("".join(re.findall(r"[0-9]", name)[:9]) or 0)
    return sorted(RULES, key=lambda id: abs(int(id[1:]) - number))[:3]  # noqa: A006


def _paragraph(rule: Rule) -> Iterator[str]:
    yield f"### {rule.id}\n"
    yield f"`{rule.slug}`, {LEVELS[rule.id[0]]}, reported by `{COMMANDS[rule.subject]}`.\n"
    yield f"{_sentences(rule.why)}\n"
    yield f"**What Django does.** {_sentences(rule.django)}\n"
    yield f"**Cure.** {_sentences(rule.cure)}\n"
    yield f'**Silence.** `SILENCED_SYSTEM_CHECKS = ["conn_guard.{rule.id}"]`\n'


def _sentences(text: str) -> str:
    """Return *text* with each sentence on a line of its own."""
    return re.sub(r"(?<=[.!?]) ", "\n", " ".join(text.split()))
