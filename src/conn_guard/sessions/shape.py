"""The shape of a statement: its verb and its first relation, and nothing else of its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from conn_guard.text import printable

LONGEST_NAME = 64
"""Characters of a relation's name that are shown; a longer name is cut in the middle."""
MOST_CHARACTERS = 4096
"""Characters of a statement that are read; the rest counts as cut off."""
DEEPEST = 8
"""Levels of subqueries that are searched for the first relation."""

ALONE = frozenset(
    [
        "ABORT",
        "ANALYZE",
        "BEGIN",
        "CALL",
        "CHECKPOINT",
        "CLOSE",
        "CLUSTER",
        "COMMENT",
        "COMMIT",
        "DEALLOCATE",
        "DISCARD",
        "DO",
        "END",
        "EXECUTE",
        "EXPLAIN",
        "FETCH",
        "GRANT",
        "IMPORT",
        "LISTEN",
        "LOAD",
        "MOVE",
        "NOTIFY",
        "PREPARE",
        "REASSIGN",
        "REFRESH",
        "REINDEX",
        "RELEASE",
        "RESET",
        "REVOKE",
        "ROLLBACK",
        "SAVEPOINT",
        "SECURITY",
        "SET",
        "SHOW",
        "START",
        "UNLISTEN",
        "VACUUM",
        "VALUES",
    ]
)
"""Verbs that are shown without a name: the words after them may hold a secret."""
DEFINITIONS = ("ALTER", "CREATE", "DROP")
KINDS = frozenset(
    [
        "AGGREGATE",
        "CAST",
        "COLLATION",
        "CONVERSION",
        "DATABASE",
        "DOMAIN",
        "EVENT",
        "EXTENSION",
        "FOREIGN",
        "FUNCTION",
        "GROUP",
        "INDEX",
        "LANGUAGE",
        "OPERATOR",
        "OWNED",
        "POLICY",
        "PROCEDURE",
        "PUBLICATION",
        "ROLE",
        "ROUTINE",
        "RULE",
        "SCHEMA",
        "SEQUENCE",
        "SERVER",
        "STATISTICS",
        "SUBSCRIPTION",
        "SYSTEM",
        "TABLE",
        "TABLESPACE",
        "TRANSFORM",
        "TRIGGER",
        "TYPE",
        "USER",
        "VIEW",
    ]
)
BEFORE_KIND = frozenset(
    ["GLOBAL", "LOCAL", "MATERIALIZED", "OR", "REPLACE", "TEMP", "TEMPORARY", "UNIQUE", "UNLOGGED"]
)
BEFORE_NAME = frozenset(["CONCURRENTLY", "EXISTS", "IF", "INTO", "LATERAL", "NOT", "ONLY", "TABLE"])
NO_NAME = frozenset(
    [
        "ALL",
        "AND",
        "AS",
        "BY",
        "CASE",
        "CROSS",
        "DEFAULT",
        "DISTINCT",
        "EXCEPT",
        "FETCH",
        "FOR",
        "FROM",
        "FULL",
        "GROUP",
        "HAVING",
        "INNER",
        "INTERSECT",
        "IN",
        "JOIN",
        "LEFT",
        "LIMIT",
        "NATURAL",
        "NULL",
        "OFFSET",
        "ON",
        "OR",
        "ORDER",
        "RETURNING",
        "RIGHT",
        "ROWS",
        "SELECT",
        "SET",
        "TO",
        "UNION",
        "USING",
        "VALUES",
        "WHEN",
        "WHERE",
        "WINDOW",
        "WITH",
    ]
)
"""Words that can't be an unquoted name; one in its place means that the text wasn't understood."""

_NAME = r'(?:"[^"]+"|[A-Za-z_][A-Za-z0-9_$]*)'
# A run of columns such as Django writes them, so that a long list is read at once.
_COLUMNS = re.compile(rf"(?:{_NAME}\.{_NAME}(?:[ ](?:AS|as)[ ]{_NAME})?,\s)+")
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
  | (?P<doubt>[uU]&["'])
  | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
  | (?P<literal>'(?:[^']|'')*(?:'|\Z))
  | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
  | (?P<value>[$]?[0-9][A-Za-z0-9_.$\x80-\U0010ffff]*)
  | (?P<comment>/\*)
  | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE_COLUMNS = ("SELECT", "DISTINCT", "ALL", ",")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")


class Token(NamedTuple):
    """A word in upper case, a name, a sign, or a value whose text is not kept."""

    kind: str
    text: str


_VALUE = Token("value", "")


@lru_cache(maxsize=4096)
def shape(text: str, *, is_cut: bool = False) -> str:
    """Return the verb and the first relation of the statement *text*; "" for an unknown verb.

    No literal, parameter or comment gets through. Of several statements the first one counts.
    Where the text is ambiguous, only the part before that is read. *is_cut* says that the server
    kept the beginning alone: a SELECT without its FROM then has the table of its first column.
    """
    tokens = list(_tokens(text[:MOST_CHARACTERS]))
    verb, relation = _statement(tokens, 0)
    if is_cut or len(text) > MOST_CHARACTERS:
        relation = relation or _first_table(tokens)
    return f"{verb} {relation}" if relation else verb


def _statement(tokens: Sequence[Token], depth: int) -> tuple[str, str]:
    """Return the verb and the relation of *tokens*; "" for each that isn't known."""
    start = 0
    while _is_sign(tokens, start, "("):
        start += 1
    if start == len(tokens) or tokens[start].kind != "word" or depth > DEEPEST:
        return "", ""
    verb, rest = tokens[start].text, tokens[start + 1 :]
    if verb == "SELECT":
        return verb, _selected(rest, depth)
    if verb in ("INSERT", "MERGE", "UPDATE", "TABLE", "TRUNCATE", "LOCK"):
        return verb, _name(rest)
    if verb == "DELETE":
        return verb, _name(rest[1:]) if _is_word(rest, 0, "FROM") else ""
    if verb == "COPY":
        is_query = _is_sign(rest, 0, "(")
        return verb, _statement(rest[1:], depth + 1)[1] if is_query else _name(rest)
    if verb == "WITH":
        return _with(rest, depth)
    if verb == "DECLARE":
        query = _statement(rest[_find(rest, "FOR") + 1 :], depth + 1)
        return verb, " ".join(("…", *filter(None, query))) if query[0] else ""
    if verb in DEFINITIONS:
        return _definition(verb, rest)
    return (verb, "") if verb in ALONE else ("", "")


def _selected(tokens: Sequence[Token], depth: int) -> str:
    """Return the first relation after the FROM of a SELECT, that of a subquery included."""
    after = _find(tokens, "FROM") + 1
    while _is_word(tokens, after, "ONLY", "LATERAL"):
        after += 1
    if _is_sign(tokens, after, "("):
        return _statement(tokens[after:], depth + 1)[1]
    return _name(tokens[after:], is_from=True)


def _first_table(tokens: Sequence[Token]) -> str:
    """Return the table of the first column of a SELECT that has no FROM."""
    first = 2 if _is_word(tokens, 1, "DISTINCT", "ALL") else 1
    is_list = _is_word(tokens, 0, "SELECT") and tokens[first : first + 1]
    if not is_list or tokens[first].kind != "columns" or _find(tokens, "FROM") < len(tokens):
        return ""
    return tokens[first].text


def _with(tokens: Sequence[Token], depth: int) -> tuple[str, str]:
    bodies: dict[str, Sequence[Token]] = {}
    at = 1 if _is_word(tokens, 0, "RECURSIVE") else 0
    while at < len(tokens):
        name = _shown(tokens[at])
        at += 1
        if _is_sign(tokens, at, "("):
            at = _after_parenthesis(tokens, at)
        while _is_word(tokens, at, "AS", "NOT", "MATERIALIZED"):
            at += 1
        if not _is_sign(tokens, at, "("):
            return "WITH", ""
        end = _after_parenthesis(tokens, at)
        bodies[name] = tokens[at + 1 : max(at + 1, end - 1)]
        at = end
        if not _is_sign(tokens, at, ","):
            break
        at += 1
    verb, relation = _statement(tokens[at:], depth + 1)
    seen: set[str] = set()
    while relation in bodies and relation not in seen:
        seen.add(relation)
        relation = _statement(bodies[relation], depth + 1)[1]
    if relation in bodies:  # a query that refers to itself alone
        relation = ""
    return "WITH", f"… {verb} {relation}".rstrip() if verb else ""


def _definition(verb: str, tokens: Sequence[Token]) -> tuple[str, str]:
    at = 0
    while at < len(tokens) and tokens[at].kind == "word" and tokens[at].text in BEFORE_KIND:
        at += 1
    if at == len(tokens) or tokens[at].kind != "word" or tokens[at].text not in KINDS:
        return verb, ""
    kind = tokens[at].text
    return f"{verb} {kind}", _name(tokens[at + 1 :]) if kind == "TABLE" else ""


def _name(tokens: Sequence[Token], *, is_from: bool = False) -> str:
    """Return the name that *tokens* begin with, with its schema; "" if there is none."""
    at = 0
    while at < len(tokens) and tokens[at].kind == "word" and tokens[at].text in BEFORE_NAME:
        at += 1
    parts: list[str] = []
    while at < len(tokens) and tokens[at].kind in ("word", "quoted") and len(parts) < 3:
        if tokens[at].kind == "word" and tokens[at].text in NO_NAME and not parts:
            return ""
        parts.append(_shown(tokens[at]))
        at += 1
        if not _is_sign(tokens, at, "."):
            break
        at += 1
    is_function = is_from and _is_sign(tokens, at, "(")
    return "" if is_function else _cut(".".join(parts))


def _shown(token: Token) -> str:
    """Return a name as SQL writes it, with nothing in it that a terminal would obey."""
    if token.kind == "word":
        # PostgreSQL folds ASCII letters alone; the token's text is in upper case.
        return printable(token.text.lower())
    name = token.text
    return name if _PLAIN.fullmatch(name) else '"' + printable(name).replace('"', '""') + '"'


def _cut(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _find(tokens: Sequence[Token], word: str) -> int:
    """Return the index of the keyword *word* outside parentheses, or the number of tokens."""
    depth = 0
    for at, token in enumerate(tokens):
        if token.kind == "sign":
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if depth < 0:  # the end of the subquery that is read
                return len(tokens)
        elif (
            not depth and token.kind == "word" and token.text == word and not _is_label(tokens, at)
        ):
            return at
    return len(tokens)


def _is_label(tokens: Sequence[Token], at: int) -> bool:
    """Return whether the word at *at* is a column's name or a part of IS DISTINCT FROM."""
    return (
        _is_sign(tokens, at - 1, ".")
        or _is_word(tokens, at - 1, "AS")
        or (_is_word(tokens, at - 1, "DISTINCT") and _is_word(tokens, at - 2, "IS", "NOT"))
    )


def _after_parenthesis(tokens: Sequence[Token], at: int) -> int:
    """Return the index after the parenthesis that closes the one at *at*."""
    depth = 0
    for index in range(at, len(tokens)):
        if tokens[index].kind == "sign":
            depth += {"(": 1, ")": -1}.get(tokens[index].text, 0)
            if not depth:
                return index + 1
    return len(tokens)


def _is_word(tokens: Sequence[Token], at: int, *words: str) -> bool:
    return 0 <= at < len(tokens) and tokens[at].kind == "word" and tokens[at].text in words


def _is_sign(tokens: Sequence[Token], at: int, sign: str) -> bool:
    return 0 <= at < len(tokens) and tokens[at] == ("sign", sign)


def _tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of the first statement in *text*, up to the first that is in doubt."""
    at, before = 0, _VALUE
    while at < len(text):
        if before.text in _BEFORE_COLUMNS and (columns := _COLUMNS.match(text, at)):
            table = next(_tokens(columns[0]))
            token, at = Token("columns", _cut(_shown(table))), columns.end()
        else:
            found = _TOKEN.match(text, at)
            assert found  # noqa: S101 - the last alternative takes any character
            kind, part, at = str(found.lastgroup), found[0], found.end()
            if kind == "space":
                continue
            if kind == "comment":
                at = _after_comment(text, at)
                continue
            # Whether a backslash escapes the quote after it depends on a setting of the session.
            if kind == "doubt" or part in (";", '"') or (kind == "literal" and "\\" in part):
                return
            if kind == "dollar":
                closing = text.find(part, at)
                at = len(text) if closing < 0 else closing + len(part)
            token = _token(kind, part)
        yield token
        before = token


def _token(kind: str, part: str) -> Token:
    if kind == "word":
        return Token("word", part.upper() if part.isascii() else part)
    if kind == "quoted":
        return Token("quoted", part[1:-1].replace('""', '"'))
    return Token("sign", part) if kind == "sign" else _VALUE


def _after_comment(text: str, at: int) -> int:
    """Return the end of the comment that was opened before *at*; comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
