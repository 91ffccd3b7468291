"""Sends the requests of a round, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from conn_guard.probe.options import Mode, Options
from conn_guard.probe.targets import SAFE_METHODS, Target, without_secrets

if TYPE_CHECKING:
    import aiohttp

INSTALL = "leak_probe needs aiohttp. Type: pip install 'conn-guard[probe]'."
BYTES_A_SECOND = 64 * 1024
"""The speed of a client in mode ``slow``."""
_STEP_SECONDS = 0.1


@dataclass
class Answers:
    """The answers of one round."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Requests that got no status, by reason: ``timed out``, ``closed``, ``not HTTP``."""
    cut: int = 0
    """Answers whose body ended early."""
    longest_seconds: float = 0.0
    """The longest time that a request took, the first one left out: the server warms up in it."""
    location: str = ""
    """The address that a redirect named."""
    unreachable: str = ""
    """Why no connection could be made, if the first request got none."""

    @property
    def sent(self) -> int:
        """The number of requests that ended."""
        return self.statuses.total() + self.failures.total()


class Load:
    """The requests of one round to one target. Start it once; it ends by itself."""

    def __init__(self, target: Target, mode: Mode, options: Options, *, warms_up: bool) -> None:
        """*warms_up*: the first request is sent alone, and no more follow if it gets no answer."""
        self.answers = Answers()
        self._target = target
        self._mode = mode
        self._options = options
        self._warms_up = warms_up
        self._left = iter(range(options.requests))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._end: Future[None] = Future()

    def start(self) -> None:
        """Begin to send requests."""
        thread = ThreadPoolExecutor(1, "leak_probe")
        self._end = thread.submit(asyncio.run, self._send_all())
        thread.shutdown(wait=False)

    @property
    def runs(self) -> bool:
        """Whether requests are under way."""
        return not self._end.done()

    def stop(self) -> None:
        """Send no more requests and drop those under way."""
        self._left = iter(())
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)

    def join(self) -> None:
        """Wait for the end; raise the load's own unexpected error."""
        with suppress(asyncio.CancelledError):
            self._end.result()

    async def _send_all(self) -> None:
        import aiohttp

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        options = self._options
        headers = dict(options.headers)
        if options.cookies:
            pairs = (f"{name}={value}" for name, value in options.cookies.items())
            headers["Cookie"] = "; ".join(pairs)
        async with aiohttp.ClientSession(
            # A connection for each request, as a proxy makes it by default. Cookies that the server
            # sets would make the requests of a round differ.
            connector=aiohttp.TCPConnector(
                limit=options.concurrency,
                force_close=True,
                socket_factory=_small_socket if self._mode is Mode.SLOW else None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "conn_guard leak_probe", **headers},
            timeout=aiohttp.ClientTimeout(total=options.timeout.total_seconds()),
            auto_decompress=False,
        ) as client:
            if self._warms_up:
                for _ in self._one():
                    await self._send(client)
                self.answers.longest_seconds = 0.0
                if not self.answers.statuses:
                    return
            await asyncio.gather(*(self._work(client) for _ in range(options.concurrency)))

    def _one(self) -> Iterator[int]:
        with suppress(StopIteration):
            yield next(self._left)

    async def _work(self, client: aiohttp.ClientSession) -> None:
        while list(self._one()):
            await self._send(client)

    async def _send(self, client: aiohttp.ClientSession) -> None:
        import aiohttp

        answers, status = self.answers, 0
        method = "HEAD" if self._mode is Mode.HEAD else self._target.method
        began = time.monotonic()
        try:
            async with client.request(
                method,
                self._target.url,
                data=None if method in SAFE_METHODS else self._options.data,
                allow_redirects=False,
                read_bufsize=4096 if self._mode is Mode.SLOW else None,
            ) as answer:
                status = answer.status
                if location := answer.headers.get("Location"):
                    answers.location = without_secrets(urljoin(self._target.url, location))
                await self._take(answer)
        except aiohttp.ClientSSLError as error:
            self._unreachable(_tls_reason(error))
        except aiohttp.ClientConnectorError as error:
            self._unreachable(error.strerror or "no connection")
        except asyncio.TimeoutError:
            if not status:
                answers.failures["timed out"] += 1
            elif self._mode is not Mode.SLOW:
                answers.cut += 1
        except (aiohttp.ClientError, OSError) as error:
            if status:
                answers.cut += 1
            elif isinstance(error, (aiohttp.ClientResponseError, aiohttp.InvalidURL, ValueError)):
                answers.failures["not HTTP"] += 1
            else:
                answers.failures["closed"] += 1
        if status:
            answers.statuses[status] += 1
        answers.longest_seconds = max(answers.longest_seconds, time.monotonic() - began)

    def _unreachable(self, reason: str) -> None:
        if not self.answers.sent:
            self.answers.unreachable = reason
        self.answers.failures["no connection"] += 1

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        if self._mode is Mode.DISCONNECT:
            answer.close()
        elif self._mode is Mode.SLOW:
            async for _ in answer.content.iter_chunked(round(BYTES_A_SECOND * _STEP_SECONDS)):
                await asyncio.sleep(_STEP_SECONDS)
        else:
            async for _ in answer.content.iter_any():
                pass


def _small_socket(address: Any) -> socket.socket:
    """Return a socket that takes little ahead, so that the server waits for the slow client."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BYTES_A_SECOND)
    return made


def _tls_reason(error: Any) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {cause.verify_message}"
    return "it speaks no TLS that this client understands"
