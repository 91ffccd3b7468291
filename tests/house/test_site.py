"""The site of docs/: its pictures, its links, and the figures of its comparison."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import conn_guard
from tools.pictures import leak_matrix
from tools.pictures.__main__ import drawn
from tools.site_links import wrong

DOCS = Path(__file__).resolve().parents[2] / "docs"
MATRIX = (DOCS / "reference" / "leak-matrix.md").read_text(encoding="utf-8")
COMPARISON = (DOCS / "explanation" / "which-tool-when.md").read_text(encoding="utf-8")
RINGS = (DOCS / "explanation" / "the-three-rings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", drawn(), ids=lambda path: path.name)
def test_a_picture_is_what_its_text_says(path):
    assert path.read_text(encoding="utf-8") == drawn()[path], "run: python -m tools.pictures"


def test_the_heat_map_has_every_mechanism_and_its_worst_figure():
    map_of = leak_matrix.draw(MATRIX)
    rows = [*leak_matrix.rows(MATRIX)]
    assert len(rows) > 250
    assert all(leak_matrix._short(mechanism) in map_of for _, mechanism, _, _ in rows)
    worst = max(leak_matrix.left(cell) for *_, cells in rows for cell in cells)
    assert f">{worst}</text>" in map_of


def test_a_server_of_unknown_kind_is_refused():
    page = "\n## The cells\n| other | view | 0 | 1 / 1 | 0 | 0 | 0 |\n"
    with pytest.raises(ValueError, match="Is other an ASGI or a WSGI server"):
        leak_matrix.draw(page)


@pytest.mark.parametrize(
    ("cell", "left"), [("8 to 28 / 0 tx !40err [5]", 28), ("0 !42 to 44err [13]", 0), ("0", 0)]
)
def test_the_most_sessions_of_a_cell_are_read(cell, left):
    assert leak_matrix.left(cell) == left


def test_the_figures_of_the_comparison_are_those_of_the_matrix():
    rows = [*leak_matrix.rows(MATRIX)]
    pool = [cells for _, _, setting, cells in rows if setting == "pool"]
    kept = [
        cells
        for server, _, setting, cells in rows
        if setting in ("60", "None") and server in leak_matrix.ASGI
    ]

    def leaving(of: list[list[str]], column: int) -> int:
        return sum(leak_matrix.left(cells[column]) > 0 for cells in of)

    failing = sum("err" in cells[0] for cells in pool)
    assert f"in {leaving(pool, 0)} of {len(pool)} rows with a pool" in COMPARISON
    assert max(leak_matrix.left(cells[0]) for cells in pool) == 10
    assert f"but {failing} rows have requests that fail" in COMPARISON
    assert leaving(pool, 2) == sum("err" in cells[2] for cells in pool) == 0
    assert f"in {leaving(kept, 0)} of {len(kept)} rows with Django alone" in COMPARISON
    assert leaving(kept, 1) == 0
    cells, alone, _, ring_1, rings = (
        sum(map(int, column))
        for column in zip(
            *re.findall(r"psycopg2? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", MATRIX),
            strict=True,
        )
    )
    said = f"in {alone:,} of {cells:,} cases, and app, middleware and engine in {rings}."
    assert said in COMPARISON
    assert f"of {cells:,} measured cases, Django alone leaves sessions in {alone:,}" in RINGS
    assert f"ring 1 in {ring_1}, and rings 1 and 2 in {rings};" in RINGS


def test_the_comparison_repeats_the_figures_of_the_reaper():
    reaper = (DOCS / "explanation" / "what-a-reaper-can-and-cannot-do.md").read_text("utf-8")
    assert "The three hard wrong kills in 12,185 remain" in reaper
    assert "3 sessions at work among 12,185" in COMPARISON


def test_every_public_name_has_its_paragraph():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in page for name in conn_guard.__all__)


def test_what_is_wrong_with_a_site_is_told(tmp_path):
    (tmp_path / "good.html").write_text("<!DOCTYPE html><h1 id=top>Good</h1><a href='#top'>up</a>")
    (tmp_path / "bad.html").write_text(
        "<!DOCTYPE html><a href=good.html#top>1</a><a href=good.html#end>2</a>"
        "<a href=gone.html>3</a><a href=https://other.example/>4</a>"
        "<script src=https://other.example/x.js></script>"
    )
    assert [*wrong(tmp_path)] == [
        "bad.html: https://other.example/x.js is loaded from another host.",
        "bad.html: good.html#end names no anchor of its page.",
        "bad.html: gone.html leads nowhere.",
    ]
