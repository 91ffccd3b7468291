"""A rule, the table of rules, and the messages that rules make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from django.core.checks import ERROR, INFO, WARNING, CheckMessage

from conn_guard import pages

logger = logging.getLogger("conn_guard.checks")

LEVELS = {"E": ERROR, "W": WARNING, "I": INFO}

Found = tuple[str, str]
"""A finding: the message, which never holds a secret, and the hint, which says what to type."""

Subject = Literal[
    "project",  # a Project; static
    "alias",  # an Alias; static
    "reaping",  # an Alias whose database is named; connects to nothing
    "session",  # ServerFacts
    "no answer",  # NoAnswer
    "deployment",  # ServerFacts, with --deploy
    "capacity",  # a tuple of ServerFacts, with --deploy
]
"""The argument of a rule's function."""

Speaks = Literal["always", "at start"]
"""When a static rule speaks: with every command that runs checks, or in check and server starts."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One check: its id, the function that finds, and the words of the reference page."""

    id: str
    slug: str
    subject: Subject
    why: str
    django: str
    cure: str
    find: Callable[..., Iterable[Found]]
    speaks: Speaks = "always"

    def messages(self, subject: object) -> Iterator[CheckMessage]:
        """Yield the rule's messages about *subject*; never raises, but logs a rule that fails."""
        try:
            for message, hint in self.find(subject):
                yield message_of(self.id, message, hint)
        # Settings hold any object, and a check that raises would stop every command of the project.
        # The text of the error and its traceback may hold a secret.
        except Exception as error:  # noqa: BLE001
            logger.warning("conn_guard.%s could not look (%s).", self.id, type(error).__name__)


RETIRED: dict[str, str] = {}
"""Each id that is no longer used, with a sentence on its successor: an id is never used again."""


def table(*groups: Iterable[Rule]) -> dict[str, Rule]:
    """Return the rules of *groups* by id and in the order of their numbers.

    Raises ValueError for an id that is retired or used twice.
    """
    rules: dict[str, Rule] = {}
    for rule in sorted((rule for group in groups for rule in group), key=lambda rule: rule.id[1:]):
        if rule.id in rules or rule.id in RETIRED:
            raise ValueError(f"{rule.id} is taken.")
        rules[rule.id] = rule
    return rules


def message_of(id: str, message: str, hint: str) -> CheckMessage:  # noqa: A002
    """Return Django's message for *id*, at its letter's level.

    The hint ends with what prints the paragraph about *id*, and with the paragraph's address.
    """
    more = f"For more, type conn-guard check {id}. See {address(id)}"
    return CheckMessage(LEVELS[id[0]], message, hint=f"{hint} {more}", id=f"conn_guard.{id}")


def address(id: str) -> str:  # noqa: A002
    """Return the address of the paragraph about *id*."""
    return pages.address(f"reference/checks.md#{id.lower()}")


def log(message: CheckMessage) -> None:
    """Write *message* on one line of the logger ``conn_guard.checks``, at its own level."""
    logger.log(message.level, "%s: %s %s", message.id, message.msg, message.hint)
