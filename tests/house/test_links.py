"""Every relative link of every page leads to a file and, where it names one, to a heading."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.split("\n")
# The page that this template makes is looked at itself.
TEMPLATE = "tests/leaks/page.md"
PAGES = [name for name in LISTED if name not in ("", TEMPLATE) and (ROOT / name).exists()] or [
    str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings and of its own `id` attributes."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return words | set(re.findall(r'id="([^"]+)"', text))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_leads_to_another_one_and_is_led_to():
    docs = ROOT / "docs"
    pages = {page for page in docs.rglob("*.md") if page != docs / "README.md"}
    led_to = {
        page: {
            (page.parent / place).resolve()
            for place in re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text())
        }
        & pages - {page}
        for page in pages
    }
    # The code makes the page of the checks, and its paragraphs are also shown without the others.
    assert {page.name for page in pages if not led_to[page]} <= {"checks.md"}
    assert pages - set().union(*led_to.values()) == set()
