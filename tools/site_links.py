"""``python -m tools.site_links FOLDER`` finds dead links and foreign resources in a built site."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import html5lib

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "srcset"}
LOADED = {"link", "img", "script", "source"}
"""The elements whose address a browser loads by itself."""


class Page:
    """The addresses and the anchors of one page of HTML."""

    def __init__(self, path: Path) -> None:
        tree = html5lib.parse(path.read_bytes(), namespaceHTMLElements=False)
        self.anchors = {each.get("id") for each in tree.iter() if each.get("id")}
        self.links = [
            (each.tag, each.get(LINKS[each.tag]))
            for each in tree.iter()
            if each.tag in LINKS and each.get(LINKS[each.tag])
        ]


def wrong(site: Path) -> Iterator[str]:
    """Yield each dead link and each foreign resource of the pages below *site*."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for tag, link in page.links:
            where = f"{path.relative_to(site.resolve())}: {link}"
            if re.match(r"(?:\w+:)?//", link) and tag in LOADED:
                yield f"{where} is loaded from another host."
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{where} leads nowhere."
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].anchors:
                    yield f"{where} names no anchor of its page."


if __name__ == "__main__":
    sys.exit("\n".join(wrong(Path(sys.argv[1]))) or None)
