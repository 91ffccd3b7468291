"""The table of checks, its reference page, and the checks in Django."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from django.core.checks import run_checks

from conn_guard import checks, conf
from conn_guard.checks.page import explain, page
from conn_guard.checks.registry import RETIRED, table
from conn_guard.checks.rules import RULES
from conn_guard.text import shown
from tests.django.checks_project import alias, ids


def test_an_id_is_never_taken_twice(monkeypatch):
    rule = RULES["E101"]
    with pytest.raises(ValueError, match=r"E101 is taken\."):
        table([rule], [rule])
    monkeypatch.setitem(RETIRED, "E101", "It is no longer used.")
    with pytest.raises(ValueError, match=r"E101 is taken\."):
        table([rule])


def test_the_rules_stand_in_the_order_of_their_numbers():
    numbers = [id[1:] for id in RULES]  # noqa: A001
    assert numbers == sorted(numbers)
    assert {id: rule.id for id, rule in RULES.items()} == dict(zip(RULES, RULES, strict=True))  # noqa: A001


def test_every_id_has_a_test_of_its_own_and_words_of_its_own():
    folder = Path(__file__).parents[1]
    files = [*folder.glob("django/test_checks*.py"), folder / "postgres/test_server_checks.py"]
    tests = "".join(file.read_text() for file in files)
    assert [id for id in RULES if f"def test_{id}_" not in tests] == []  # noqa: A001
    assert all(each.why and each.django and each.cure for each in RULES.values())
    assert len({each.slug for each in RULES.values()}) == len(RULES)
    assert len(RULES) == 47


PAGE = Path(__file__).parents[2] / "docs/reference/checks.md"


def test_the_reference_page_is_what_the_table_says():
    assert page() == PAGE.read_text(), "run: python -m conn_guard.checks > docs/reference/checks.md"
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2] / "src")}
    # -OO takes docstrings and assertions out.
    for option in ("-B", "-OO"):
        command = [sys.executable, option, "-m", "conn_guard.checks"]
        printed = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        assert printed.stdout == PAGE.read_text()


def test_every_address_in_a_hint_is_a_heading_of_the_page():
    headings = {
        line.removeprefix("### ").lower()
        for line in PAGE.read_text().splitlines()
        if line.startswith("### ")
    }
    assert {each.lower() for each in RULES} <= headings


def test_a_retired_id_keeps_its_paragraph(monkeypatch):
    monkeypatch.setitem(RETIRED, "W199", "W122 took its place.")
    assert page().endswith("## Retired\n\n### W199\n\nW122 took its place.\n")


def test_a_check_is_explained_as_plain_text():
    text = explain("E101")
    assert explain("conn_guard.e101") == text
    assert text.startswith("conn_guard.E101\n\nmax-age-type, Error, reported by manage.py check.\n")
    assert "\nCure. Write a number of seconds, or None without quotes for no limit.\n" in text
    assert text.endswith("\n\nPage: docs/reference/checks.md#e101\n")
    assert [each for each in RULES if re.search(r"`|\*\*|###", explain(each))] == []


def test_a_retired_id_is_explained(monkeypatch):
    monkeypatch.setitem(RETIRED, "W199", "W122 took its place.")
    assert explain("w199").startswith("conn_guard.W199\n\nW122 took its place.\n")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("E999", "I309, W308, W307"),
        ("W101", "E101, W102, W103"),
        ("conn_guard.W121", "I121, W120, W122"),
        ("asgi_persistent", "W120, I121, I131"),
        ("x", "E001, E002, E003"),
    ],
)
def test_an_unknown_check_names_the_ids_that_are_near(name, near):
    said = f"There is no check {name!r}. Near it: {near}."
    with pytest.raises(LookupError, match=re.escape(said)):
        explain(name)


def test_a_rule_that_fails_says_nothing_and_is_logged(caplog):
    class Hostile(dict):
        def __bool__(self):
            raise RuntimeError("no")

    assert ids(alias(CONN_HEALTH_CHECKS=Hostile(), CONN_MAX_AGE=60)) == set()
    assert "conn_guard.I123 could not look" in caplog.text


def test_the_checks_are_bound_to_django(settings):
    settings.CONN_GUARD = {"CLOSE": "sometimes"}
    found = run_checks(tags=["conn_guard"])
    assert "conn_guard.E003" in [message.id for message in found]
    assert [message.id for message in checks.static_checks()] == [message.id for message in found]


def test_conn_guard_is_parsed_once_a_run(monkeypatch):
    parsed = []
    parse = conf.parse
    monkeypatch.setattr(conf, "parse", lambda raw: parsed.append(raw) or parse(raw))
    settings = alias(HOST="pgbouncer", CONN_MAX_AGE=60)
    ids(settings, CONN_GUARD={"POOLER": {"default": "session"}, "CLOSE": 1})
    assert len(parsed) == 1


def test_a_process_that_cannot_be_watched_starts_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr("conn_guard.checks.startup.watch", lambda: 1 / 0)
    checks.watch()
    assert "This process is not watched." in caplog.text


def test_no_engine_is_imported_and_no_connection_is_touched():
    settings = alias(ENGINE="no.such.engine", CONN_MAX_AGE="60")
    ids(settings)
    loaded = set(sys.modules)
    touched = AssertionError("a static check touched django.db.connections")
    with mock.patch(
        "django.utils.connection.BaseConnectionHandler.__getitem__", side_effect=touched
    ):
        assert ids(settings) == {"E101"}
    assert set(sys.modules) == loaded
    assert settings["DATABASES"]["default"].keys() == {"ENGINE", "NAME", "HOST", "CONN_MAX_AGE"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 100, repr("x" * 77 + "...")),
        ("two\nlines", r"'two\nlines'"),
        ((1,), "(1,)"),
        ([1, "a"], "[1, 'a']"),
        ([[1]], "[...]"),
        ([1, 2, 3, 4], "(a list)"),
        (10**20, "(a number of more than 20 digits)"),
        ({}, "(a dict)"),
        ("postgres://app:x@db/app", "(a text that may hold a secret)"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value, text):
    assert shown(value) == text
