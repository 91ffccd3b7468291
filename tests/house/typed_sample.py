"""Uses of the public functions; mypy reads this file, and no code runs it.

An `ignore` that is not needed is an error for mypy, so each of them asserts that mypy refuses the
line.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from conn_guard import closing_connections, pin

if TYPE_CHECKING:
    from typing_extensions import assert_type


@closing_connections
def bare(number: int) -> str:
    return str(number)


@closing_connections()
def called(number: int) -> str:
    return str(number)


@closing_connections
async def waiting(number: int) -> str:
    return str(number)


def synchronous() -> None:
    assert_type(bare(1), str)
    assert_type(called(1), str)
    bare("1")  # type: ignore[arg-type]
    called()  # type: ignore[call-arg]
    with closing_connections() as nothing:
        assert_type(nothing, None)
    with pin():
        pass
    with pin("other"):
        pass
    pinned: AbstractContextManager[None] = pin(alias="other")
    with pinned:
        pass
    pin(1)  # type: ignore[arg-type]


async def asynchronous() -> None:
    assert_type(await waiting(1), str)
    await waiting("1")  # type: ignore[arg-type]
    async with closing_connections():
        pass
