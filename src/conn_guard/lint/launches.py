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
            if function is not None and (slug == "task") == function.is_async:
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
    if _TASKS.fullmatch(name) and call.args and not _is_awaited(module, call):
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


def _is_awaited(module: Module, call: ast.Call) -> bool:
    """Return whether the function that makes the task waits for it."""
    names: set[str] = set()
    for node in module.around(call):
        if isinstance(node, ast.Await):
            return True
        if isinstance(node, ast.Assign):
            names |= {each.id for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # Such as tasks.append(asyncio.create_task(…)).
            names |= {each.id for each in ast.walk(node.func.value) if isinstance(each, ast.Name)}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            awaited = (each for each in ast.walk(node) if isinstance(each, ast.Await))
            inner = (each for one in awaited for each in ast.walk(one))
            return any(isinstance(each, ast.Name) and each.id in names for each in inner)
    return False
