"""The page of the benchmarks is what the results give, and one table is measured as a trial."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import charts, page, results
from benchmarks.figures import rate, spread, text
from benchmarks.tables import TABLES
from benchmarks.tables.table import Size

ROOT = Path(__file__).resolve().parents[2]


def made_up(name: str, *, small: bool = False, without: int = 0) -> results.Result:
    """Return a result whose every cell is a number, but for the first rows, which failed."""
    result = results.begin(f"python -m benchmarks --only {name}", small=small)
    result.versions = {"PostgreSQL": "18.6"}
    columns = [column.key for column in TABLES[name].columns]
    for number, row in enumerate(TABLES[name].rows(Size.FULL)):
        cells = {key: spread([number + 1.5, number + 2, number + 4]) for key in columns}
        result.rows[row] = cells if number >= without else {"failed": "not measured: absent"}
    return result


def test_the_page_and_its_pictures_are_what_the_results_give():
    made = page.files(results.read(results.RESULTS))
    for path, text_of in made.items():
        assert path.read_text(encoding="utf-8") == text_of, "run: python -m benchmarks --draw"
    assert {*page.DOCS.glob("images/bench-*.svg")} == {*made} - {page.DOCS / page.PAGE}


def test_a_table_without_results_is_said_to_be_unmeasured():
    assert page.render({}).count("This table was not measured.") == len(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_its_rows_what_they_mean_and_where_they_come_from(name):
    shown = page.render({name: made_up(name)})
    rows = re.findall(r"^\| (.+?) \| [^a-z]", shown, re.MULTILINE)
    assert set(TABLES[name].rows(Size.FULL)) <= set(rows)
    assert "Not every row was measured" not in shown
    assert f"](../images/bench-{name}.svg)" in shown
    assert f"by `python -m benchmarks --only {name}`" in shown
    assert "PostgreSQL 18.6" in shown


def test_a_row_that_failed_says_why_and_has_no_bar():
    (name, *_) = TABLES
    result = made_up(name, without=1)
    (failed, *others) = result.rows
    assert f"| {failed} | not measured: absent | " in page.render({name: result})
    assert "Not every row was measured" in page.render({name: result})
    picture = charts.draw(TABLES[name], result.rows)
    assert f">{charts._plain(failed)}</text>" not in picture
    assert all(f">{charts._plain(other)}</text>" in picture for other in others)


@pytest.mark.parametrize("name", TABLES)
def test_a_picture_is_well_formed_and_keeps_its_bars_inside(name):
    picture = charts.draw(TABLES[name], made_up(name).rows)
    drawing = ElementTree.fromstring(picture)
    bars = [each for each in drawing if each.get("class") in ("bar", "ours")]
    assert len(bars) == len(TABLES[name].rows(Size.FULL))
    assert all(float(each.get("x")) + float(each.get("width")) < charts.WIDTH for each in bars)
    assert "prefers-color-scheme:dark" in picture


def test_tiny_sizes_are_marked_and_not_summed_up():
    (name, *_) = TABLES
    shown = page.render({name: made_up(name, small=True)})
    assert "its figures mean nothing" in shown
    assert "Django alone has a peak" not in shown


def test_a_share_has_the_interval_of_wilson():
    # The value of the textbook: 1 of 10 lies between 1.8 % and 40.4 %.
    assert text(rate(1, 10), ".0f") == "100 (18 to 404)"
    assert rate(0, 1000)["low"] == 0


def measured(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, dict, str]:
    """Run the command; return its exit code, its results and its page."""
    kept = tmp_path / "results.json"
    words = ["--small", "--results", str(kept), "--docs", str(tmp_path), *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = tmp_path / page.PAGE
    return done.returncode, json.loads(kept.read_text()), shown.read_text()


def test_a_trial_measures_one_table_and_keeps_the_others(tmp_path):
    pytest.importorskip("psycopg")
    results.write(tmp_path / "results.json", {"load": made_up("load")})
    code, kept, shown = measured(tmp_path, "--only", "recovery")
    assert code == 0
    ((row, cells),) = kept["recovery"]["rows"].items()
    assert cells["seconds"]["n"] == 1
    assert f"| {row} | " in shown
    assert [*kept["load"]["rows"]] == TABLES["load"].rows(Size.FULL)
    assert (tmp_path / "images" / "bench-recovery.svg").exists()


def test_a_table_that_can_not_be_measured_says_why_and_the_next_one_follows(tmp_path):
    code, kept, shown = measured(
        tmp_path, "--only", "recovery", "aliases", PG_BINDIR=str(tmp_path), DATABASE_URL=""
    )
    assert code == 1
    assert [*kept] == ["recovery", "aliases"]
    for name, result in kept.items():
        assert [*result["rows"]] == TABLES[name].rows(Size.TRIAL)
    assert shown.count("| not measured: No PostgreSQL was found") == 5


def test_a_table_whose_time_is_over_is_ended(tmp_path, monkeypatch):
    hasty = {"rest": replace(TABLES["rest"], within=0.01)}
    monkeypatch.setattr(command, "TABLES", hasty)
    monkeypatch.setattr(command, "LOGS", tmp_path)
    words = ["--small", "--results", str(tmp_path / "results.json"), "--docs", str(tmp_path)]
    assert command.main(words) == 1
    failed = {"failed": "not measured: its 0.01 s were over"}
    assert {*map(str, results.read(tmp_path / "results.json")["rest"].rows.values())} == {
        str(failed)
    }
