"""Sends the requests of a round, in a thread of its own."""

from __future__ import annotations

import asyncio
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
    longest_seconds: float = 0.0
    """The longest time that a request took, the first one left out: the server warms up in it."""
    seconds: float = 0.0
    """The time that the round took, without its first request if that was sent alone."""
    location: str = ""
    """The address that a redirect named."""
    unreachable: str = ""
    """The reason why no connection could be made, if the first request got none."""

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
        self._headers = _headers(options)
        # aiohttp takes either a header or the URL's user.
        has_user = "authorization" not in {name.lower() for name in self._headers}
        self._url = target.url if has_user else target.without_user
        self._mode = mode
        self._options = options
        self._warms_up = warms_up
        self._is_stopped = False
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
        self._is_stopped = True
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
        if self._is_stopped:
            return
        options = self._options
        async with aiohttp.ClientSession(
            # A connection for each request, as a proxy makes it by default. Cookies that the server
            # sets would make the requests of a round differ.
            connector=aiohttp.TCPConnector(limit=options.concurrency, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=options.timeout.total_seconds()),
            auto_decompress=False,
        ) as client:
            due = iter(range(options.requests))
            if self._warms_up:
                next(due)
                await self._send(client)
                self.answers.longest_seconds = 0.0
                if not self.answers.statuses:
                    return
            began = time.monotonic()
            await asyncio.gather(*(self._work(client, due) for _ in range(options.concurrency)))
            self.answers.seconds = time.monotonic() - began

    async def _work(self, client: aiohttp.ClientSession, due: Iterator[int]) -> None:
        for _ in due:
            await self._send(client)

    async def _send(self, client: aiohttp.ClientSession) -> None:
        import aiohttp

        answers, status, reason = self.answers, 0, "no connection"
        method = "HEAD" if self._mode is Mode.HEAD else self._target.method
        began = time.monotonic()
        try:
            async with client.request(
                method,
                self._url,
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
            reason = "timed out"
        except aiohttp.ClientResponseError:
            reason = "not HTTP"
        except (aiohttp.ClientError, OSError):
            reason = "closed"
        # With a status, the view has run: it doesn't matter how the body ended.
        if status:
            answers.statuses[status] += 1
        else:
            answers.failures[reason] += 1
        answers.longest_seconds = max(answers.longest_seconds, time.monotonic() - began)

    def _unreachable(self, reason: str) -> None:
        if not self.answers.sent:
            self.answers.unreachable = reason

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        if self._mode is Mode.DISCONNECT:
            answer.close()
        elif self._mode is Mode.SLOW:
            async for _ in answer.content.iter_chunked(round(BYTES_A_SECOND * _STEP_SECONDS)):
                await asyncio.sleep(_STEP_SECONDS)
        else:
            async for _ in answer.content.iter_any():
                pass


def _headers(options: Options) -> dict[str, str]:
    """Return the headers of each request."""
    headers = dict(options.headers)
    given = {name.lower(): name for name in headers}
    if "user-agent" not in given:
        headers["User-Agent"] = "conn_guard leak_probe"
    if options.cookies:
        name = given.get("cookie", "Cookie")
        pairs = [f"{each}={value}" for each, value in options.cookies.items()]
        headers[name] = "; ".join([*filter(None, [headers.get(name)]), *pairs])
    return headers


def _tls_reason(error: Any) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {cause.verify_message}"
    return "it speaks no TLS that this client understands"
