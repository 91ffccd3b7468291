"""What a statement leaves behind in its session, told by its text alone: this room holds the words that make state."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from enum import Enum


class Leaves(Enum):
    """What a session holds after a statement that it did not hold before."""

    NOTHING = "nothing"
    STATE = "state"
    UNASKABLE_STATE = "unaskable state"
    """A setting of the application's own, such as ``app.tenant``, which no query can list."""


# After a semicolon too, because a string may hold several statements; a doubt counts as state, which is the safe side.
_COMMENTS = r"\s*(?:(?:--[^\n]*\n|/\*.*?\*/)\s*)*"
# SET TRANSACTION and SET CONSTRAINTS end with their transaction, as SET LOCAL does.
_OPENING = re.compile(
    _COMMENTS + r"(?:set\s+(?!local\b|transaction\b|constraints\b)|listen\b|prepare\s+(?!transaction\b)"
    r"|create\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp|declare\b[^;]*\bwith\s+hold\b)",
    re.DOTALL,
)
_UNASKABLE_SET = re.compile(_COMMENTS + r'set\s+(?:session\s+)?[\w"]+\s*\.', re.DOTALL)
# With a literal true it is the function's form of SET LOCAL; otherwise only a plain name in quotes can be asked for.
_SET_CONFIG = re.compile(r"set_config\s*\((?![^()]*,\s*true\s*\))(?P<askable>\s*'[^'.]*')?")
_INTO_TEMP = re.compile(r"\binto\s+(?:(?:global|local)\s+)?temp")

# Beyond this a text is an import or a bulk insert: looking again costs less than keeping it.
_KEPT_CHARACTERS = 4000


def leaves(sql: str) -> Leaves:
    """Return what *sql* leaves behind in its session."""
    return _remembered(sql) if len(sql) <= _KEPT_CHARACTERS else _look(sql)


def _look(sql: str) -> Leaves:
    text = sql.lower()
    if "set_config" in text and (call := _SET_CONFIG.search(text)):
        return Leaves.STATE if call["askable"] else Leaves.UNASKABLE_STATE
    starts = list(_starts(text))
    if any(_UNASKABLE_SET.match(text, start) for start in starts):
        return Leaves.UNASKABLE_STATE
    # pg_advisory_xact_lock is none: it ends with its transaction.
    if "advisory_lock" in text or any(_OPENING.match(text, start) for start in starts):
        return Leaves.STATE
    return Leaves.STATE if "temp" in text and _INTO_TEMP.search(text) else Leaves.NOTHING


_remembered = functools.lru_cache(maxsize=512)(_look)


def _starts(text: str) -> Iterator[int]:
    start = 0
    while start >= 0:
        yield start
        found = text.find(";", start)
        start = found + 1 if found >= 0 else -1
