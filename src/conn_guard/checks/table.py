"""The table of checks that the code runs and the reference page prints: this room holds a rule's form and its registry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from django.core.checks import ERROR, INFO, WARNING, CheckMessage

logger = logging.getLogger("conn_guard.checks")

PAGE = "docs/reference/checks.md"
LEVELS = {"E": ERROR, "W": WARNING, "I": INFO}

Found = tuple[str, str]
"""What a rule found: the message, which never holds a secret, and the hint, which says what to type."""
Find = TypeVar("Find", bound=Callable[..., Iterable[Found]])


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One check: its id, the function that finds, and the paragraph of the reference page."""

    id: str
    slug: str
    subject: str
    why: str
    django: str
    cure: str
    find: Callable[..., Iterable[Found]]

    def messages(self, subject: Any) -> Iterator[CheckMessage]:
        """Yield what the rule finds in *subject*; a rule that fails finds nothing and says so in the log."""
        try:
            for message, hint in self.find(subject):
                yield message_of(self.id, message, hint)
        except Exception:  # noqa: BLE001 - settings may hold any object; a check that raises would stop every command
            logger.debug("conn_guard.%s could not look.", self.id, exc_info=True)


def message_of(id: str, message: str, hint: str) -> CheckMessage:  # noqa: A002 - Django's own name for it
    """Return Django's message for check *id*, at the level of the id's letter, with the address of its paragraph."""
    return CheckMessage(LEVELS[id[0]], message, hint=f"{hint} See {PAGE}#{id.lower()}.", id=f"conn_guard.{id}")


RULES: dict[str, Rule] = {}
RETIRED: dict[str, str] = {}
"""Ids that are no longer given, each with a sentence on what took its place. An id is never used again."""


def rule(id: str, slug: str, *, subject: str, why: str, django: str, cure: str) -> Callable[[Find], Find]:  # noqa: A002
    """Enter the decorated function in the table under *id*; *subject* says what it is called with."""

    def enter(find: Find) -> Find:
        if id in RULES or id in RETIRED:
            raise ValueError(f"{id} is taken: ids are never used twice.")
        RULES[id] = Rule(id=id, slug=slug, subject=subject, why=why, django=django, cure=cure, find=find)
        return find

    return enter
