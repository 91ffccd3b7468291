"""The URLs of a probe: reads them from arguments and files, and refuses other people's hosts."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from conn_guard.text import one_line, shown

SAFE_METHODS = ("GET", "HEAD")
_SECRET = re.compile(
    r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|sig|auth|session|code)[^=&;]*=)[^&;]*"
)


class TargetError(ValueError):
    """A URL or a list of URLs that can't be used; the text says in one line what to write."""


class UnresolvedError(Exception):
    """The name of a host leads to no address."""


@dataclass(frozen=True)
class Target:
    """A URL and the method by which it is asked."""

    url: str
    method: str = "GET"

    @property
    def origin(self) -> str:
        """Scheme, host and port, without a user and a password."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{_place(parts)}"

    @property
    def without_user(self) -> str:
        """The URL without a user and a password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=_place(parts)).geturl()

    @property
    def shown(self) -> str:
        """The URL as an output shows it: without a password, and without values of secrets."""
        return without_secrets(self.url)


@dataclass(frozen=True)
class UrlList:
    """The targets of a file, and the number of entries that were left out, by reason."""

    targets: Sequence[Target]
    other_hosts: int = 0
    other_methods: int = 0


def target(url: str, method: str = "GET") -> Target:
    """Return *url* as a target; raise TargetError if it is none of http or https."""
    try:
        parts = urlsplit(url.strip())
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and _port(parts) > 0
    except ValueError:
        is_url = False
    if not is_url or re.search(r"[\s\x00-\x1f]", url.strip()):
        raise TargetError(f"{shown(url)} is no URL. Write http://127.0.0.1:8000/path/.")
    path = parts.path or "/"
    return Target(parts._replace(path=path, fragment="").geturl(), method.upper())


def read_list(
    text: str, given: Sequence[Target], *, method: str = "GET", any_method: bool = False
) -> UrlList:
    """Return the targets in *text*: one URL a line with ``#`` comments, or a browser's HAR file.

    Of a HAR file, those on a host of *given* are taken; without any, those on the host of the
    first entry. Methods other than GET and HEAD are left out, unless *any_method*. Raises
    TargetError.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        return _read_har(text.lstrip("\ufeff"), given, any_method=any_method)
    lines = (line.partition(" #")[0].strip() for line in text.lstrip("\ufeff").splitlines())
    found = [target(line, method) for line in lines if line and not line.startswith("#")]
    return UrlList(list(dict.fromkeys(found)))


def refuse_other_hosts(targets: Iterable[Target]) -> None:
    """Raise TargetError if an address of one of *targets* is not a loopback address.

    Raises UnresolvedError where a name leads to no address.
    """
    for host in dict.fromkeys(urlsplit(each.url).hostname or "" for each in targets):
        addresses = _addresses(host)
        if not all(map(_is_loopback, addresses)):
            raise TargetError(
                f"{one_line(host)} is not a loopback address. A probe is a load test: add"
                " --i-own-this-host if it is your own."
            )


def without_secrets(url: str) -> str:
    """Return *url* on one line, without its user and the values of parameters such as token."""
    try:
        parts = urlsplit(url)
        url = parts._replace(netloc=_place(parts)).geturl()
    except ValueError:
        return "(a URL that can't be read)"
    return one_line(_SECRET.sub(r"\1***", url))


def _read_har(text: str, given: Sequence[Target], *, any_method: bool) -> UrlList:
    try:
        entries: list[Any] = json.loads(text)["log"]["entries"]
        asked = [(each["request"]["method"], each["request"]["url"]) for each in entries]
        found = [
            target(str(url), str(method)) for method, url in asked if str(url).startswith("http")
        ]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError("it is no HAR file. Save one by a browser's network tools.") from None
    origins = {each.origin for each in given} or {each.origin for each in found[:1]}
    here = [each for each in found if each.origin in origins]
    taken = [each for each in here if any_method or each.method in SAFE_METHODS]
    return UrlList(list(dict.fromkeys(taken)), len(found) - len(here), len(here) - len(taken))


def _addresses(host: str) -> list[str]:
    try:
        return [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        raise UnresolvedError(
            f"{one_line(host)} leads to no address. Check the name, or write 127.0.0.1."
        ) from None


def _is_loopback(address: str) -> bool:
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_loopback


def _place(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _port(parts: SplitResult) -> int:
    return 80 if parts.port is None else parts.port
