"""Finds the lines that run code in another thread or in a task."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from conn_guard.lint.source import Class, External, Function, Module, Source

WORDS = re.compile(
    rb"Thread|Timer|to_thread|run_in_executor|thread_sensitive|create_task|ensure_future"
)
"""A file without one of these words runs nothing in another thread or task."""

_THREADS = {"threading.Thread": "target", "threading.Timer": "function"}
_EXECUTOR = re.compile(r"concurrent\.futures\.(thread\.)?ThreadPoolExecutor\(\)")
_TASKS = re.compile(
    r"asyncio\.(create_task|ensure_future"
    r"|(get_running_loop|get_event_loop|new_event_loop)\(\)\.create_task)"
)
_SYNC_TO_ASYNC = "asgiref.sync.sync_to_async"


@dataclass(frozen=True)
class Launch:
    """A place that runs *function* in another thread or in a task; *slug* names the kind."""

    slug: str
    module: Module
    node: ast.expr | ast.stmt
    function: Function


RUNNERS = {
    "thread": "A thread",
    "executor": "A thread of the executor",
    "to-thread": "asyncio.to_thread",
    "run-in-executor": "run_in_executor",
    "sync-to-async": "sync_to_async(thread_sensitive=False)",
    "task": "A task",
}
"""The slugs, and how a message begins for each."""


def launches(source: Source, module: Module) -> Iterator[Launch]:
    """Yield the places in *module* that run code in another thread or task."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            yield from _thread_class(source, module, node)
        elif isinstance(node, ast.Call):
            slug, target = _call(source, module, node)
            function = _function(source, module, target)
            if function is not None and (slug == "task" or not function.is_async):
                yield Launch(slug, module, node, function)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                if _is_insensitive(source, module, decorator):
                    yield Launch("sync-to-async", module, decorator, Function(module, node))


def _call(source: Source, module: Module, call: ast.Call) -> tuple[str, ast.expr | None]:
    """Return the slug of *call* and the expression that it runs elsewhere."""
    found = source.resolve(module, call.func)
    name = found.name if isinstance(found, External) else ""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name in _THREADS:
        return "thread", _argument(call, 1, _THREADS[name])
    if name == "asyncio.to_thread":
        return "to-thread", _argument(call, 0)
    if method == "run_in_executor":
        executor = source.resolve(module, call.args[0]) if call.args else None
        is_process = isinstance(executor, External) and "Process" in executor.name
        return "run-in-executor", None if is_process else _argument(call, 1)
    if method in ("submit", "map") and _EXECUTOR.fullmatch(name.rpartition(".")[0]):
        return "executor", _argument(call, 0)
    if _is_insensitive(source, module, call):
        return "sync-to-async", _argument(call, 0)
    if _TASKS.fullmatch(name) and call.args and _is_forgotten(module, call):
        coroutine = call.args[0]
        return "task", coroutine.func if isinstance(coroutine, ast.Call) else None
    return "", None


def _function(source: Source, module: Module, target: ast.expr | None) -> Function | None:
    found = source.resolve(module, target)
    return found if isinstance(found, Function) else None


def _argument(call: ast.Call, index: int, keyword: str | None = None) -> ast.expr | None:
    for each in call.keywords:
        if keyword is not None and each.arg == keyword:
            return each.value
    if len(call.args) <= index or any(isinstance(each, ast.Starred) for each in call.args[:index]):
        return None
    given = call.args[index]
    # The function behind copy_context().run is the next argument.
    is_run = isinstance(given, ast.Attribute) and given.attr == "run"
    return call.args[index + 1] if is_run and len(call.args) > index + 1 else given


def _is_insensitive(source: Source, module: Module, node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and source.resolve(module, node.func) == External(_SYNC_TO_ASYNC)
        and any(
            each.arg == "thread_sensitive"
            and isinstance(each.value, ast.Constant)
            and each.value.value is False
            for each in node.keywords
        )
    )


def _thread_class(source: Source, module: Module, node: ast.ClassDef) -> Iterator[Launch]:
    of = Class(module, node)
    for each in node.body:
        if (
            isinstance(each, ast.FunctionDef)
            and each.name == "run"
            and not _THREADS.keys().isdisjoint(source.external_bases(of))
        ):
            yield Launch("thread", module, each, Function(module, each))


def _is_forgotten(module: Module, call: ast.Call) -> bool:
    """Return whether no code waits for the task of *call*; a set may keep it from collection."""
    around = module.around(call)
    parent = next(around)
    if isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name):
        name = parent.targets[0].id
        for scope in around:
            if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
                return all(_forgets(module, use) for use in _uses(scope, name))
    return _forgets(module, call)


def _forgets(module: Module, task: ast.AST) -> bool:
    parent = module.parents[task]
    if isinstance(parent, ast.Call) and task in parent.args:
        return isinstance(parent.func, ast.Attribute) and parent.func.attr == "add"
    return isinstance(parent, ast.Expr) or (
        isinstance(parent, ast.Attribute) and parent.attr == "add_done_callback"
    )


def _uses(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    """Yield the nodes in *scope* that read *name* or share it with another function."""
    for node in ast.walk(scope):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            if name in node.names:
                yield node
        elif isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            yield node
