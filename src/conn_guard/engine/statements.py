"""What a statement leaves behind in its session, told by its text alone: this room holds the words
that make state.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from enum import Enum


class Leaves(Enum):
    """What a session holds after a statement that it did not hold before."""

    NOTHING = "nothing"
    TRANSACTION = "transaction"
    """One that only the server knows of, begun by a raw BEGIN."""
    STATE = "state"
    UNASKABLE_STATE = "unaskable state"
    """A setting of the application's own, such as ``app.tenant``, which no query can list."""


# After a semicolon too, because a string may hold several statements; a doubt counts as state,
# which is the safe side.
_COMMENTS = r"\s*(?:(?:--[^\n]*\n|/\*.*?\*/)\s*)*"
# SET TRANSACTION and SET CONSTRAINTS end with their transaction, as SET LOCAL does.
_OPENING = re.compile(
    _COMMENTS
    + r"(?:set\s+(?!local\b|transaction\b|constraints\b)|listen\b|prepare\s+(?!transaction\b)"
    r"|create\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b|create\b[^;]*\bpg_temp\s*\."
    r"|declare\b[^;]*\bwith\s+hold\b)",
    re.DOTALL,
)
_BEGIN = re.compile(_COMMENTS + r"(?:begin|start\s+transaction)\b", re.DOTALL)
# SET SESSION AUTHORIZATION changes both roles that the server names, so nothing there tells of it.
_UNASKABLE_SET = re.compile(
    _COMMENTS + r'set\s+(?:session\s+authorization\b|(?:session\s+)?[\w"]+\s*\.)', re.DOTALL
)
# With a literal true it is the function's form of SET LOCAL; otherwise only a plain name in quotes
# can be asked for.
_SET_CONFIG = re.compile(r"set_config\s*\((?![^()]*,\s*true\s*\))(?P<askable>\s*'[^'.]*')?")
_INTO_TEMP = re.compile(r"\binto\s+(?:(?:global|local)\s+)?temp(?:orary)?\b")

# A string of so many statements is a script, which is taken to make state unread: reading it all
# could take seconds.
_MANY_STATEMENTS = 50

# Beyond this a text is an import or a bulk insert: reading it again costs less than keeping it.
KEPT_CHARACTERS = 4000


def read(sql: str) -> Leaves:
    """Return what *sql* leaves behind in its session."""
    text = sql.lower()
    if "set_config" in text and (call := _SET_CONFIG.search(text)):
        return Leaves.STATE if call["askable"] else Leaves.UNASKABLE_STATE
    starts = list(itertools.islice(_starts(text), _MANY_STATEMENTS))
    if len(starts) == _MANY_STATEMENTS:
        return Leaves.STATE
    if any(_UNASKABLE_SET.match(text, start) for start in starts):
        return Leaves.UNASKABLE_STATE
    # pg_advisory_xact_lock is none: it ends with its transaction.
    if "advisory_lock" in text or any(_OPENING.match(text, start) for start in starts):
        return Leaves.STATE
    if "temp" in text and _INTO_TEMP.search(text):
        return Leaves.STATE
    return (
        Leaves.TRANSACTION if any(_BEGIN.match(text, start) for start in starts) else Leaves.NOTHING
    )


remember = functools.lru_cache(maxsize=512)(read)
"""What :func:`read` returns, for texts of at most KEPT_CHARACTERS that come again and again."""


def _starts(text: str) -> Iterator[int]:
    start = 0
    while start >= 0:
        yield start
        found = text.find(";", start)
        start = found + 1 if found >= 0 else -1
