"""``python -m tools.site_links FOLDER`` finds dead links and foreign resources in a built site."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of one page of HTML, its links, and the addresses that a browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what the attributes of one element name."""
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name == "src" or (name == "href" and tag == "link"):
                self.loaded.append(value or "")


def wrong(site: Path) -> Iterator[str]:
    """Yield each dead link and each foreign resource of the pages below *site*."""
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.loaded:
            if re.match(r"(?:https?:)?//", link):
                yield f"{name}: {link} is loaded from another host."
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists():
                yield f"{name}: {link} leads nowhere."
            elif parts.fragment and unquote(parts.fragment) not in anchors:
                yield f"{name}: {link} names no anchor of its page."


if __name__ == "__main__":
    sys.exit("\n".join(wrong(Path(sys.argv[1]))) or None)
