"""The findings about some paths: lines that run querying code which closes no connection."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conn_guard.lint.effects import Query, unended_query
from conn_guard.lint.launches import RUNNERS, WORDS, Launch, launches
from conn_guard.lint.source import Module, Source

IGNORE = "conn_guard: ignore"
"""A line with this comment is not named."""


@dataclass(frozen=True)
class Finding:
    """A line that runs querying code; *line* and *column* count from 1."""

    path: str
    line: int
    column: int
    slug: str
    message: str
    hint: str
    query_path: str
    query_line: int


@dataclass(frozen=True)
class Report:
    """The findings, the number of Python files, and the files that could not be read."""

    findings: list[Finding]
    files: int
    unreadable: dict[str, str]


def find(paths: list[Path]) -> Report:
    """Return the report about the Python files that *paths*, files and folders, hold."""
    source = Source(paths)
    findings: list[Finding] = []
    for module in _candidates(source):
        try:
            findings += _findings(source, module)
        except RecursionError:
            source.unreadable[module.path] = "its code is nested too deeply"
    findings.sort(key=lambda each: (each.path, each.line, each.column))
    unreadable = {str(path): why for path, why in source.unreadable.items()}
    return Report(findings, len(source.files), unreadable)


def _candidates(source: Source) -> Iterator[Module]:
    for parts, file in source.files.items():
        try:
            may_launch = WORDS.search(file.read_bytes())
        except OSError as error:
            source.unreadable[file] = str(error)
            continue
        if may_launch and (module := source.module(parts)) is not None:
            yield module


def _findings(source: Source, module: Module) -> Iterator[Finding]:
    for launch in launches(source, module):
        query = unended_query(source, launch.function)
        is_ignored = IGNORE in module.lines[launch.node.lineno - 1]
        if query is not None and not is_ignored:
            yield _finding(launch, query)


def _finding(launch: Launch, query: Query) -> Finding:
    name = launch.function.name
    path, query_path = str(launch.module.path), str(query.module.path)
    where = f"line {query.line}" if path == query_path else f"{query_path}:{query.line}"
    is_lambda = isinstance(launch.function.node, ast.Lambda)
    return Finding(
        path=path,
        line=launch.node.lineno,
        column=launch.node.col_offset + 1,
        slug=launch.slug,
        message=(
            f"{RUNNERS[launch.slug]} runs {name}, which queries at {where} and closes no"
            " connection."
        ),
        hint=(
            f"Replace {name} by a function, decorated with @conn_guard.closing_connections."
            if is_lambda
            else f"Decorate {name} with @conn_guard.closing_connections."
        ),
        query_path=query_path,
        query_line=query.line,
    )
