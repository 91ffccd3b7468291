"""Finds the definitions that names in Python files stand for, without importing the files."""

from __future__ import annotations

import ast
import os
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_SKIPPED = {"node_modules", "site-packages", "venv", "__pycache__"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Scope = ast.Module | FunctionNode
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(eq=False)
class Module:
    """A parsed file; *parts* is its absolute path without the suffix."""

    path: Path
    parts: tuple[str, ...]
    tree: ast.Module
    lines: list[str]
    _bound: dict[ast.AST, dict[str, list[ast.AST]]] = field(default_factory=dict)
    _assigned: dict[ast.ClassDef, dict[str, list[ast.expr]]] = field(default_factory=dict)

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node around each node."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes around *node*, from the inside out."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def bound(self, scope: _Scope) -> dict[str, list[ast.AST]]:
        """Return the nodes that bind each name in *scope*."""
        if scope not in self._bound:
            names = self._bound[scope] = {}
            for name, node in _bindings(scope):
                names.setdefault(name, []).append(node)
        return self._bound[scope]


@dataclass(frozen=True)
class Function:
    """A function, a method or a lambda."""

    module: Module
    node: FunctionNode

    @property
    def name(self) -> str:
        """The name as a message shows it."""
        return "the lambda" if isinstance(self.node, ast.Lambda) else f"{self.node.name}()"

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function."""
        return isinstance(self.node, ast.AsyncFunctionDef)

    @property
    def decorators(self) -> list[ast.expr]:
        """The decorators as written."""
        return [] if isinstance(self.node, ast.Lambda) else self.node.decorator_list


@dataclass(frozen=True)
class Class:
    """A class."""

    module: Module
    node: ast.ClassDef

    @property
    def assigned(self) -> dict[str, list[ast.expr]]:
        """The values that the class and its methods give to each attribute."""
        cached = self.module._assigned
        if self.node not in cached:
            names = cached[self.node] = {}
            for name, value in _assigned(self.node):
                names.setdefault(name, []).append(value)
        return cached[self.node]


@dataclass(frozen=True)
class Instance:
    """An instance of a class."""

    of: Class


@dataclass(frozen=True)
class External:
    """A name outside the files, such as ``threading.Thread``; ``()`` stands for a call's result."""

    name: str


Definition = Module | Function | Class | Instance | External


class Source:
    """The Python files below some paths, parsed when they are needed."""

    def __init__(self, paths: list[Path]) -> None:
        self.files: dict[tuple[str, ...], Path] = {}
        self.unreadable: dict[Path, str] = {}
        self._modules: dict[Path, Module | None] = {}
        self._resolved: dict[ast.AST, Definition | None] = {}
        self._members: dict[tuple[Class, str], Definition | None] = {}
        for path in paths:
            for file in [path] if path.is_file() else _python_files(path):
                self.files[Path(os.path.abspath(file)).with_suffix("").parts] = file

    def module(self, parts: tuple[str, ...]) -> Module | None:
        """Return the parsed file *parts*, or None if it isn't there or can't be parsed."""
        file = self.files.get(parts)
        if file is not None and file not in self._modules:
            self._modules[file] = None
            try:
                with tokenize.open(file) as text:
                    written = text.read()
                with warnings.catch_warnings():
                    # The compiler warns of an invalid escape in a text, which is no fault here.
                    warnings.simplefilter("ignore")
                    tree = ast.parse(written)
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
                self.unreadable[file] = str(error)
            else:
                self._modules[file] = Module(file, parts, tree, written.splitlines())
        return self._modules[file] if file is not None else None

    # Names

    def resolve(self, module: Module, node: ast.AST | None) -> Definition | None:
        """Return the definition that the expression *node* stands for; None if it is unknown."""
        if node is None:
            return None
        if node not in self._resolved:
            # A name that is defined by itself stands for nothing.
            self._resolved[node] = None
            self._resolved[node] = self._resolve(module, node)
        return self._resolved[node]

    def _resolve(self, module: Module, node: ast.AST) -> Definition | None:
        if isinstance(node, _FUNCTIONS):
            return Function(module, node)
        if isinstance(node, ast.ClassDef):
            return Class(module, node)
        if isinstance(node, ast.Name):
            return self._named(module, node.id, node)
        if isinstance(node, ast.Attribute):
            owner = self.resolve(module, node.value)
            return self.member(owner, node.attr)
        if isinstance(node, ast.Subscript):
            owner = self.resolve(module, node.value)
            return External(f"{owner.name}[]") if isinstance(owner, External) else None
        if isinstance(node, ast.Await):
            return self.resolve(module, node.value)
        return self._called(module, node) if isinstance(node, ast.Call) else None

    def member(self, owner: Definition | None, name: str) -> Definition | None:
        """Return the definition of the attribute *name* of *owner*."""
        if isinstance(owner, External):
            return External(f"{owner.name}.{name}")
        if isinstance(owner, Module):
            found = self._bound_to(owner, owner.tree, name)
            is_package = owner.parts[-1] == "__init__"
            return found or (self._imported((*owner.parts[:-1], name)) if is_package else None)
        if not isinstance(owner, (Class, Instance)):
            return None
        key = (owner.of if isinstance(owner, Instance) else owner, name)
        if key not in self._members:
            self._members[key] = None
            self._members[key] = self._inherited(*key)
        return self._members[key]

    def _inherited(self, of: Class, name: str) -> Definition | None:
        classes = self.family(of)
        for each in classes:
            for node in each.node.body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                    return Function(each.module, node)
        for each in classes:
            for value in each.assigned.get(name, ()):
                if (found := self.resolve(each.module, value)) is not None:
                    return found
        return None

    def family(self, of: Class) -> list[Class]:
        """Return *of* and its base classes in the files."""
        found = [of]
        for each in found:
            bases = (self.resolve(each.module, base) for base in each.node.bases)
            found += [base for base in bases if isinstance(base, Class) and base not in found]
        return found

    def external_bases(self, of: Class) -> set[str]:
        """Return the names of the base classes of *of* that lie outside the files."""
        bases = ((each, base) for each in self.family(of) for base in each.node.bases)
        found = (self.resolve(each.module, base) for each, base in bases)
        return {each.name for each in found if isinstance(each, External)}

    def _named(self, module: Module, name: str, at: ast.AST) -> Definition | None:
        child = at
        for scope in module.around(at):
            # A decorator, a default and a base class are evaluated outside of what they stand at.
            if (
                isinstance(scope, (ast.Module, *_FUNCTIONS))
                and child in (scope.body if isinstance(scope.body, list) else [scope.body])
                and name in module.bound(scope)
            ):
                return self._bound_to(module, scope, name)
            child = scope
        return None

    def _bound_to(self, module: Module, scope: _Scope, name: str) -> Definition | None:
        for node in module.bound(scope).get(name, ()):
            if isinstance(node, ast.alias):
                found = self._from_import(module, node)
            elif isinstance(node, ast.arg):
                found = self._parameter(module, scope, node)
            else:
                found = self.resolve(module, node)
            if found is not None:
                return found
        return None

    def _parameter(self, module: Module, scope: _Scope, parameter: ast.arg) -> Definition | None:
        owner = module.parents.get(scope)
        if isinstance(owner, ast.ClassDef) and not isinstance(scope, (ast.Module, ast.Lambda)):
            names = [each.arg for each in (*scope.args.posonlyargs, *scope.args.args)]
            if names[:1] == [parameter.arg] and not _has_decorator(scope, "staticmethod"):
                return Instance(Class(module, owner))
        annotated = self.resolve(module, parameter.annotation)
        return Instance(annotated) if isinstance(annotated, Class) else None

    def _called(self, module: Module, call: ast.Call) -> Definition | None:
        function = self.resolve(module, call.func)
        if isinstance(function, Class):
            return Instance(function)
        if not isinstance(function, External):
            return None
        if function.name in _PASSING_ON and call.args:
            return self.resolve(module, call.args[0])
        return External(f"{function.name}()")

    # Imports

    def _from_import(self, module: Module, alias: ast.alias) -> Definition | None:
        statement = module.parents[alias]
        if isinstance(statement, ast.Import):
            bound = alias.name if alias.asname else alias.name.partition(".")[0]
            return self._absolute(module, bound.split("."))
        if not isinstance(statement, ast.ImportFrom):
            return None
        names = statement.module.split(".") if statement.module else []
        if not statement.level:
            return self._absolute(module, [*names, alias.name])
        package = module.parts[: -statement.level]
        owner = self._imported((*package, *names))
        found = self.member(owner, alias.name) if owner else None
        return found or self._imported((*package, *names, alias.name))

    def _absolute(self, module: Module, names: list[str]) -> Definition:
        """Return the definition of the dotted *names*, seen from *module*."""
        external = External(".".join(names))
        if names[0] in sys.stdlib_module_names:
            return external
        for length in range(len(module.parts) - 1, 0, -1):
            root = module.parts[:length]
            # A folder that is a package is not on sys.path, so its modules have longer names.
            if (*root, "__init__") in self.files:
                continue
            for split in range(len(names), 0, -1):
                found: Definition | None = self._imported((*root, *names[:split]))
                for name in names[split:] if found else ():
                    found = self.member(found, name)
                if found is not None:
                    return found
        return external

    def _imported(self, parts: tuple[str, ...]) -> Module | None:
        return self.module(parts) or self.module((*parts, "__init__"))


# Their result, when called, runs the first argument in the same thread.
_PASSING_ON = {"functools.partial", "asgiref.sync.sync_to_async", "asgiref.sync.async_to_sync"}


def own_nodes(function: FunctionNode) -> Iterator[ast.AST]:
    """Yield the nodes that run when *function* runs; not those of functions defined in it."""
    pending: list[ast.AST] = (
        [function.body] if isinstance(function, ast.Lambda) else list(function.body)
    )
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            pending[:0] = ast.iter_child_nodes(node)


def _bindings(scope: _Scope) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(scope, ast.Module):
        arguments = scope.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            yield each.arg, each
    pending: list[ast.AST] = [scope.body] if isinstance(scope, ast.Lambda) else list(scope.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.alias):
            yield (node.asname or node.name.partition(".")[0]), node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            if isinstance(node.target, ast.Name) and node.value is not None:
                yield node.target.id, node.value
        elif isinstance(node, ast.withitem):
            if isinstance(node.optional_vars, ast.Name):
                yield node.optional_vars.id, node.context_expr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            # A loop variable hides the name of an outer scope; its own value is unknown.
            yield node.id, node.ctx
        pending[:0] = ast.iter_child_nodes(node)


def _assigned(of: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(of):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and node in of.body:
                yield target.id, node.value
            elif (
                isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id in ("self", "cls")
            ):
                yield target.attr, node.value


def _has_decorator(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in function.decorator_list)


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        # Sorted, so that the findings have an order.
        folders[:] = sorted(
            each for each in folders if each not in _SKIPPED and not each.startswith(".")
        )
        yield from (Path(parent, each) for each in sorted(files) if each.endswith(".py"))
