"""What the code runs and the reference page prints: this room holds the table of checks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from django.core.checks import ERROR, INFO, WARNING, CheckMessage

logger = logging.getLogger("conn_guard.checks")

PAGE = "docs/reference/checks.md"
LEVELS = {"E": ERROR, "W": WARNING, "I": INFO}

Found = tuple[str, str]
"""What a rule found: the message, which never holds a secret, and the hint, which says what to
type.
"""
Subject = Literal["project", "alias", "reaping", "session", "deployment", "capacity"]
"""What a rule looks at: the first two are static, the rest run where a database is named."""
Find = TypeVar("Find", bound=Callable[..., Iterable[Found]])


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One check: what it is called, what it is asked about, the function that finds, and the words
    of the page.
    """

    id: str
    slug: str
    subject: Subject
    why: str
    django: str
    cure: str
    find: Callable[..., Iterable[Found]]

    def messages(self, subject: object) -> Iterator[CheckMessage]:
        """Yield what the rule finds; one that fails finds nothing more and says so in the log."""
        try:
            for message, hint in self.find(subject):
                yield message_of(self.id, message, hint)
        # Settings hold any object, and a check that raises would stop every command of the project.
        # The error's own words and its traceback may hold a value that nobody should read.
        except Exception as error:  # noqa: BLE001
            logger.warning("conn_guard.%s could not look (%s).", self.id, type(error).__name__)


RULES: dict[str, Rule] = {}
RETIRED: dict[str, str] = {}
"""Ids that are given no more, each with a sentence on what took its place: an id is never used for
something else.
"""


def rule(id: str, slug: str, *, subject: Subject, django: str, cure: str) -> Callable[[Find], Find]:  # noqa: A002
    """Enter the decorated function in the table; its docstring says why the thing matters."""

    def enter(find: Find) -> Find:
        if id in RULES or id in RETIRED:
            raise ValueError(f"{id} is taken.")
        RULES[id] = Rule(
            id=id,
            slug=slug,
            subject=subject,
            why=inspect.getdoc(find) or "",
            django=django,
            cure=cure,
            find=find,
        )
        return find

    return enter


def message_of(id: str, message: str, hint: str) -> CheckMessage:  # noqa: A002
    """Return Django's message for the check *id*, at the level of its letter and with the address
    of its paragraph.
    """
    return CheckMessage(
        LEVELS[id[0]], message, hint=f"{hint} See {PAGE}#{id.lower()}.", id=f"conn_guard.{id}"
    )


def log(message: CheckMessage) -> None:
    """Write *message* on one line of the logger ``conn_guard.checks``, at its own level."""
    logger.log(message.level, "%s: %s %s", message.id, message.msg, message.hint)
