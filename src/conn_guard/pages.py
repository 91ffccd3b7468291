"""The addresses of the documentation's pages, for messages."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from urllib.parse import urljoin


def address(page: str) -> str:
    """Return the address of *page*, such as ``reference/checks.md#e101``.

    It lies below the address of the documentation in the installed distribution's metadata. Where
    the distribution names none it is the page's path in a checkout.
    """
    home = _home()
    if home.endswith(".md"):
        return urljoin(home, page)
    # A published site has a page of HTML for each page of text.
    return urljoin(f"{home.rstrip('/')}/", page.replace(".md", ".html", 1))


@cache
def _home() -> str:
    """Return the address of the documentation's first page."""
    try:
        urls = metadata.metadata("conn-guard").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    named = dict(url.split(", ", 1) for url in urls)
    return str(named.get("Documentation", "docs/README.md"))
