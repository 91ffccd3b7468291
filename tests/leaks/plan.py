"""Chooses the cells of an environment that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tests.leaks.environments import Environment
from tests.leaks.harness import Cell
from tests.leaks.mechanisms import MECHANISMS


def cells(
    environment: Environment,
    columns: Collection[str],
    *,
    servers: Collection[str] = (),
    mechanisms: Collection[str] = (),
    settings: Collection[str] = (),
) -> Iterator[Cell]:
    """Yield the cells of *environment*, the columns of one row after the other; an empty choice is
    no limit.
    """
    for server in environment.servers:
        if servers and server not in servers:
            continue
        for mechanism in MECHANISMS.values():
            if server not in mechanism.servers or (mechanisms and mechanism.name not in mechanisms):
                continue
            for setting in mechanism.settings:
                if environment.has(setting) and (not settings or setting in settings):
                    yield from (Cell(server, mechanism.name, setting, column) for column in columns)
