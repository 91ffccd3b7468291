"""The how-to pages as tests read them: blocks, statements and lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: language, note, text, and the paragraph before it."""

    language: str
    note: str
    text: str
    before: str


def blocks(page, language="", note=None):
    """Return the blocks of a page, of one language and with one note where they are given."""
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    found = re.finditer(
        r"(?P<before>[^\n]*)\n\n```(?P<language>\S+) ?(?P<note>\S*)\n(?P<text>.*?)\n```",
        text,
        re.DOTALL,
    )
    all_blocks = [
        Block(each["language"], each["note"], each["text"], each["before"]) for each in found
    ]
    assert len(all_blocks) == text.count("\n```") // 2, (
        "every block has a language and a line before it"
    )
    return [
        each for each in all_blocks if language in ("", each.language) and note in (None, each.note)
    ]


def statements(*found):
    return [
        statement
        for block in found
        for statement in re.split(r";\s*(?:\n|$)", block.text)
        if statement.strip()
    ]


def here(line, folder):
    """Return *line* with the folders of the pages replaced."""
    return line.replace("/srv/shop", str(folder)).replace(
        "/var/lib/node_exporter", str(folder / "textfile")
    )


def lines(page, language="sh", note=""):
    return [
        line
        for block in blocks(page, language, note)
        for line in block.text.splitlines()
        if line.strip()
    ]
