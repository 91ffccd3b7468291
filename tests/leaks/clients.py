"""Clients that send a bounded number of requests over loopback."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

TIMEOUT = 30


@dataclass(frozen=True)
class Address:
    """Where a server listens: a port of 127.0.0.1, or the path of a UNIX socket."""

    port: int = 0
    path: str = ""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.path:
            return await asyncio.open_unix_connection(self.path)
        return await asyncio.open_connection("127.0.0.1", self.port)


def load(
    address: Address, path: str, *, requests: int, concurrency: int, leaves_early: bool = False
) -> Counter[int]:
    """Send the requests and return how often each status was answered; 0 where the connection ended
    without one.
    """

    async def run() -> Counter[int]:
        turns = iter(range(requests))
        statuses: Counter[int] = Counter()

        async def client() -> None:
            for _ in turns:
                statuses[await _request(address, path, leaves_early=leaves_early)] += 1

        await asyncio.gather(*(client() for _ in range(concurrency)))
        return statuses

    return asyncio.run(run())


async def _request(address: Address, path: str, *, leaves_early: bool) -> int:
    try:
        return await asyncio.wait_for(_exchange(address, path, leaves_early=leaves_early), TIMEOUT)
    except (OSError, asyncio.TimeoutError):
        return 0


async def _exchange(address: Address, path: str, *, leaves_early: bool) -> int:
    reader, writer = await address.connect()
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        if leaves_early:
            try:
                head = await asyncio.wait_for(reader.read(100), 0.1)
            except asyncio.TimeoutError:
                return 200  # It left before anything came, as was asked of it.
        else:
            head = await reader.read(100)
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0
        while not leaves_early and await reader.read(1 << 16):
            pass
        return status
    finally:
        writer.transport.abort()


def ask(address: Address, path: str) -> dict[str, Any]:
    """Return the answer of the server's control path; OSError where there is none."""

    async def run() -> dict[str, Any]:
        reader, writer = await address.connect()
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise OSError(f"{path} was answered {head[:80]!r}")
            # Some servers send the body in chunks; it is one JSON object either way.
            answer: dict[str, Any] = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
            return answer
        finally:
            writer.transport.abort()

    try:
        return asyncio.run(run())
    except (asyncio.TimeoutError, ValueError) as error:
        raise OSError(f"{path} was not answered: {error!r}") from error
