"""The pages of the docs as tests read them: blocks, statements, lines and tables."""

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


def first_cells(page, heading):
    """Return the codes in the first cell of each row of the table after *heading* in a text."""
    table = page.split(heading, 1)[1].split("|---", 1)[1].split("\n\n", 1)[0]
    return [
        code
        for row in table.splitlines()[1:]
        for code in re.findall(r"`([^`]+)`", row.split(" | ", 1)[0])
    ]
