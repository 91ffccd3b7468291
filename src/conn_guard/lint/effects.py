"""Tells whether code queries with Django's ORM, and whether it closes its connection."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from conn_guard.lint.source import Class, External, Function, Instance, Module, Source, own_nodes

MAX_DEPTH = 4
"""The number of calls that are followed from the code that a thread runs."""

_MANAGERS = ("objects", "_default_manager", "_base_manager")
_QUERYING = {
    "django.db.transaction.atomic",
    "django.shortcuts.get_object_or_404",
    "django.shortcuts.get_list_or_404",
    "django.db.connection.cursor",
    "django.db.connections[].cursor",
}
# Methods that only Django's querysets and models have.
_ONLY_DJANGO = {
    "bulk_create",
    "bulk_update",
    "get_or_create",
    "refresh_from_db",
    "select_for_update",
    "update_or_create",
}
_OF_INSTANCES = {"save", "delete", "refresh_from_db"}
# Source: the asynchronous methods of Django's QuerySet and Model.
_ASYNC = re.compile(
    r"a(aggregate|bulk_create|bulk_update|contains|count|create|delete|earliest|exists|explain"
    r"|first|get|get_or_create|in_bulk|iterator|last|latest|refresh_from_db|save|update"
    r"|update_or_create)"
)
# closing_connections, close_old_connections, close_db_connection and what projects call theirs.
_ENDS = re.compile(r"(close|closing)\w*(conn|_db)", re.IGNORECASE)
_CONNECTION = re.compile(r"conn", re.IGNORECASE)
_MODEL = re.compile(r"[A-Z]\w*[a-z]|get_user_model\(|get_model\(|(\w+_)?model(_class)?$")
_ENDS_ITSELF = "database_sync_to_async"


@dataclass(frozen=True)
class Query:
    """The line at which code queries."""

    module: Module
    line: int


def unended_query(source: Source, function: Function) -> Query | None:
    """Return the nearest line where *function* queries, or None if it ends its connection.

    Calls are followed through the files of *source*, MAX_DEPTH calls deep.
    """
    first: Query | None = None
    seen = {function}
    pending = deque([(function, 0)])
    while pending:
        current, depth = pending.popleft()
        if _ends_itself(current):
            if current is function:
                return None
            continue
        if any(_ENDS.search(ast.unparse(each)) for each in current.decorators):
            return None
        for node in own_nodes(current.node):
            if _is_end(node):
                return None
            if first is None and _is_query(source, current, node):
                first = Query(current.module, getattr(node, "lineno", current.node.lineno))
            if depth < MAX_DEPTH and isinstance(node, ast.Call):
                for callee in _callees(source, current, node):
                    if callee not in seen:
                        seen.add(callee)
                        pending.append((callee, depth + 1))
        if first is None and _queries_by_decorator(source, current):
            first = Query(current.module, current.node.lineno)
    return first


def _ends_itself(function: Function) -> bool:
    return any(_ENDS_ITSELF in ast.unparse(each) for each in function.decorators)


def _is_end(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name):
        return bool(_ENDS.search(called.id))
    if not isinstance(called, ast.Attribute):
        return False
    if called.attr in ("close", "close_all", "close_if_unusable_or_obsolete"):
        return bool(_CONNECTION.search(ast.unparse(called.value)))
    return bool(_ENDS.search(called.attr))


def _is_query(source: Source, function: Function, node: ast.AST) -> bool:
    module = function.module
    if isinstance(node, ast.AsyncFor):
        return _is_on_manager(source, module, node.iter)
    if not isinstance(node, ast.Call):
        return False
    called = source.resolve(module, node.func)
    if isinstance(called, External) and called.name in _QUERYING:
        return not function.is_async
    if not isinstance(node.func, ast.Attribute):
        return False
    method, receiver = node.func.attr, node.func.value
    if function.is_async:
        # Django refuses a query without await, so such a call only builds a queryset.
        if not _ASYNC.fullmatch(method):
            return False
        method = method[1:]
    if method in _ONLY_DJANGO or _is_on_manager(source, module, receiver):
        return True
    return method in _OF_INSTANCES and _is_model(source, source.resolve(module, receiver))


def _queries_by_decorator(source: Source, function: Function) -> bool:
    found = (source.resolve(function.module, each) for each in function.decorators)
    return any(
        isinstance(each, External) and each.name.startswith("django.db.transaction.atomic")
        for each in found
    )


def _is_on_manager(source: Source, module: Module, node: ast.AST) -> bool:
    """Return whether *node* is a chain of calls that begins at a model's manager."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        if isinstance(node, ast.Attribute) and node.attr in _MANAGERS:
            model = source.resolve(module, node.value)
            if isinstance(model, (Class, Instance)):
                return _is_model(source, model)
            return _looks_like_a_model(node.value)
        node = node.func if isinstance(node, ast.Call) else node.value
    return False


def _looks_like_a_model(node: ast.expr) -> bool:
    return bool(_MODEL.match(ast.unparse(node).rpartition(".")[2]))


def _is_model(source: Source, found: object) -> bool:
    if isinstance(found, Instance):
        found = found.of
    if not isinstance(found, Class):
        return False
    bases = source.external_bases(found)
    # A base class that can't be found may be a model; MongoEngine's documents have objects, too.
    return any("django" in each or each.endswith("Model") for each in bases)


def _callees(source: Source, function: Function, call: ast.Call) -> Iterator[Function]:
    """Yield the functions that *call* runs in the same thread."""
    if _ENDS_ITSELF in ast.unparse(call.func):
        return
    module = function.module
    callee = source.resolve(module, call.func)
    if isinstance(callee, Class):
        callee = source.member(callee, "__init__")
    if not isinstance(callee, Function):
        return
    crosses = isinstance(call.func, ast.Call) or any(
        "sync" in ast.unparse(each) for each in callee.decorators
    )
    # A coroutine may not query by a plain call, and a plain call doesn't run a coroutine.
    if crosses or callee.is_async == function.is_async:
        yield callee
