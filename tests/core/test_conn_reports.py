"""The report as values and as text, JSON, metrics and HTML, against files in goldens/."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import html5lib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.census import (
    Limits,
    by_state,
    judge_all,
    nearest_limit,
    note_no_session,
)
from conn_guard.sessions.groups import DEFAULT_BY, Field, Group, Row, belongs, grouped, limit_kind
from conn_guard.sessions.meaning import meanings
from conn_guard.sessions.policy import Verdict, judge
from conn_guard.sessions.render.html import render_html
from conn_guard.sessions.render.report_json import render_report_json
from conn_guard.sessions.render.report_text import cut, render_groups, render_report, slots_bar
from conn_guard.sessions.report import Exit, Slots
from conn_guard.sessions.session import State
from tests.core.looks import MORNING, POLICY, leaked, look, row
from tests.support.rows import NOON, hidden, session

GOLDENS = Path(__file__).with_name("goldens")
NAUGHTY = 'shop\n\x1b[31m"\u202e<script>alert(1)</script>&'
FAILED = replace(MORNING, failure="no\nserver", failed_with=Exit.UNREACHABLE)


def golden(name, lines):
    path = GOLDENS / name
    if os.environ.get("WRITE_GOLDENS"):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").splitlines()


def test_text_of_a_report():
    lines = render_report(MORNING, meanings(MORNING))
    assert lines == golden("report.txt", lines)


def test_text_for_a_terminal_of_eighty_columns():
    lines = render_report(MORNING, meanings(MORNING), width=80)
    assert lines == golden("report_80.txt", lines)
    commands = [each for each in lines if each.startswith(" " * 7)]
    assert all(len(each) <= 80 for each in lines if each not in commands)


def test_json_of_a_report():
    lines = render_report_json(MORNING, meanings(MORNING))
    assert lines == golden("report.jsonl", lines)


def test_json_has_the_fields_by_which_it_groups_and_null_where_one_is_unknown():
    (line,) = render_report_json(MORNING, [], by=(Field.LAST, Field.CLIENT))
    groups = json.loads(line)["groups"]
    assert list(groups[0])[:2] == ["last", "client"]
    assert groups[0]["last"] == "SELECT auth_user"
    assert {each["last"] for each in groups} >= {None, "LISTEN"}
    assert json.loads(render_report_json(replace(MORNING, slots=None, observed_at=None), [])[0])[
        "slots_used"
    ] is None  # fmt: skip


def test_json_of_a_failure_and_of_the_same_place_once_more():
    assert [json.loads(each) for each in render_report_json(FAILED, [])] == [
        {"event": "error", "alias": "default", "exit": 5, "message": "no server"}
    ]
    assert render_report_json(replace(MORNING, mirror_of="other"), []) == []


@pytest.mark.parametrize(
    ("fail_above", "exit_code"), [(None, 0), (93, Exit.PARTIAL), (94, 0), (100, 0)]
)
def test_the_exit_code_is_3_above_a_share_of_the_fullest_limit(fail_above, exit_code):
    assert replace(MORNING, fail_above=fail_above).exit_code == exit_code
    assert replace(FAILED, fail_above=fail_above).exit_code == Exit.UNREACHABLE
    assert replace(MORNING, slots=None, fail_above=0.0).exit_code == 0


def test_a_server_without_sessions_has_no_table():
    lines = render_report(look(), meanings(look()))
    assert "SESSIONS" not in "\n".join(lines)
    assert lines[-1] == "-  0 of 97 slots are taken, and no application looks leaky."


def test_one_slot_is_taken():
    rows = [row(state=State.ACTIVE)]
    (fine,) = meanings(look(*rows))
    assert fine.sentence == "1 of 97 slots is taken, and no application looks leaky."


def test_small_groups_are_one_line_unless_asked_for():
    many = look(*(row(pid=number, application_name=f"app{number}") for number in range(40)))
    assert "and 10 sessions in 10 smaller groups: -v 2 shows them" in render_report(many, [])
    assert not any("smaller groups" in each for each in render_report(many, [], every_group=True))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("server", "41/50 slots (82%)"),
        ("role", "41/50 slots of the role's CONNECTION LIMIT (82%)"),
        ("database", "41/50 slots of the database's CONNECTION LIMIT (82%)"),
    ],
)
def test_the_line_of_the_slots_names_the_limit(limit, words):
    snapshot = replace(MORNING, slots=Slots(41, 50, exact=True), slots_limit=limit)
    assert words in render_report(snapshot, [])[1]


@pytest.mark.parametrize(
    ("used", "bar"),
    [(0, "[..........]"), (1, "[#.........]"), (50, "[#####.....]"), (120, "[##########]")],
)
def test_the_bar_shows_one_slot_and_never_more_than_all(used, bar):
    assert slots_bar(Slots(used, 100, exact=True), width=10) == bar


def test_a_long_name_is_cut_in_the_middle():
    assert cut("application", 11) == "application"
    assert cut("application", 6) == "app…on"
    long = look(*(leaked(n, application_name="a" * 63, user="u" * 63) for n in range(3)))
    assert all(len(line) <= 80 for line in render_groups(grouped(long.rows), width=80))


def test_groups_are_equal_in_each_field_and_the_largest_comes_first():
    groups = grouped(MORNING.rows)
    assert [len(each) for each in groups] == [41, 1, 1, 1, 1, 1, 1]
    assert groups[0].key == dict(
        zip(DEFAULT_BY, ["shop:server", "shop", "shop", "idle"], strict=True)
    )
    assert groups[0].lasts == [("SELECT auth_user", 38), ("COMMIT", 3)]
    assert groups[0].longest == timedelta(minutes=49)
    assert Group({}, [Row(session=hidden())]).longest is None
    assert Group({}, [Row(session=hidden())]).last == ""


def test_a_stamped_name_has_a_process_and_a_view():
    stamped = row(application_name="shop:server:4711:assets:download")
    assert Field.APPLICATION.of(stamped) == "shop:server"
    assert Field.PROCESS.of(stamped) == "4711"
    assert Field.VIEW.of(stamped) == "assets:download"
    assert Field.VIEW.of(row(application_name="shop:server:4711")) is None
    assert Field.PROCESS.of(row(application_name="shop")) is None
    assert Field.CLIENT.of(row(client="10.0.0.1")) == "10.0.0.1"
    assert Field.STATE.of(Row(session=hidden())) is None


@given(st.lists(st.sampled_from(MORNING.rows)), st.permutations(list(Field)), st.integers(1, 8))
def test_groups_hold_each_session_once(rows, fields, number):
    groups = grouped(rows, fields[:number])
    assert Counter(id(each) for group in groups for each in group.rows) == Counter(map(id, rows))
    assert len({tuple(each.key.values()) for each in groups}) == len(groups)
    assert [len(each) for each in groups] == sorted((len(each) for each in groups), reverse=True)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_kind_of_the_fullest_limit_is_that_of_its_slots(server, here, role, other):
    sessions = [session(pid=1), session(pid=2, database="x"), session(pid=3, user="y")]
    limits = Limits(server=server, database=here, roles={"shop": role, "y": other})
    fullest = nearest_limit(sessions, POLICY, limits)
    totals = {"server": server, "database": here, "role": role}
    assert totals[limit_kind(sessions, POLICY, limits, fullest)] == fullest.total


@pytest.mark.parametrize(
    ("fields", "in_scope", "expected"),
    [
        ({}, False, True),
        ({"application_name": "conn_guard:report"}, True, False),
        ({"is_self": True}, True, False),
        ({"backend_type": "walsender"}, False, False),
        ({"backend_type": "walsender"}, True, True),
        ({"backend_type": None, "hidden": True}, False, True),
        ({"backend_type": None, "hidden": True, "database": None}, False, False),
    ],
)
def test_a_report_shows_clients_and_whatever_is_in_scope_but_no_report(fields, in_scope, expected):
    assert belongs(session(**fields), in_scope=in_scope) is expected


def test_a_reports_session_counts_as_a_slot_and_nowhere_else():
    own = session(application_name="conn_guard:report")
    assert judge(own, POLICY) is Verdict.REAPER
    assert judge_all([own], POLICY) == []
    assert by_state([own]) == {}
    assert not own.is_idle
    assert not POLICY.might_reap(own)
    assert note_no_session([own], POLICY)
    limits = Limits(server=10, database=None, roles={})
    assert nearest_limit([own], POLICY, limits).used == 1


def page(snapshot=MORNING, **fields):
    looks = [(replace(snapshot, **fields), meanings(snapshot))]
    return render_html(looks)


def parsed(text):
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(text)


def words(tree):
    return " ".join("".join(tree.itertext()).split())


def test_the_page_is_valid_html_and_says_what_the_text_says():
    tree = parsed(page())
    text = words(tree.find("body"))
    assert tree.find("head/title").text == "Connections: default"
    for each in meanings(MORNING):
        assert each.sentence in text
        assert each.command in text
    assert "≤ 47 of 50" in text
    assert "I305" in text
    rows = tree.findall(".//table[@class='groups']/tbody/tr")
    assert len(rows) == len(grouped(MORNING.rows))
    assert rows[0][0].text == "41"


def test_the_pictures_have_their_numbers_in_words():
    pictures = parsed(page()).iter("{http://www.w3.org/2000/svg}svg")
    labels = [each.get("aria-label") for each in pictures if each.get("role")]
    assert labels[0] == "≤ 47 of 50 slots of the server"
    assert "shop:server: 41 idle" in labels
    assert "shop:worker: 1 active, 1 idle in transaction" in labels
    assert "exporter: 1 hidden or unknown" in labels


def test_the_page_has_nothing_that_is_loaded_or_run():
    for element in parsed(page()).iter():
        assert element.tag not in {"script", "iframe", "object", "embed", "img", "base", "form"}
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "action", "background"}
            assert (name, value) == ("href", "data:,") or name != "href"
    style = parsed(page()).find("head/style").text
    assert not re.search(r"url\(|@import|https?:", style)


def test_names_show_as_text_whatever_they_are():
    rows = [
        leaked(n, application_name=NAUGHTY, user=NAUGHTY, database=NAUGHTY, last=NAUGHTY)
        for n in range(6)
    ]
    text = page(look(*rows, alias=NAUGHTY, address=NAUGHTY))
    tree = parsed(text)
    assert not [each for each in tree.iter() if "script" in str(each.tag)]
    assert "<script>alert(1)</script>&" in words(tree)
    assert "\x1b" not in text
    assert "\u202e" not in text


@given(st.text(max_size=80))
def test_any_name_keeps_the_page_valid(name):
    tree = parsed(page(look(leaked(1, application_name=name, user=name), alias="x")))
    assert len(tree.findall(".//table[@class='groups']/tbody/tr")) == 1


def test_a_failure_and_further_aliases_are_sections_and_a_mirror_is_none():
    many = look(
        *(row(pid=n, application_name=f"app{n:02}", state=State.FASTPATH) for n in range(25)),
        slots_limit="role",
    )
    text = render_html([
        (FAILED, []),
        (replace(many, alias="replica", observed_at=None, settings={}), []),
        (replace(MORNING, mirror_of="default"), []),
        (look(alias="empty", slots=0), meanings(look())),
    ])  # fmt: skip
    tree = parsed(text)
    assert len(list(tree.iter("section"))) == 3
    assert "no server" in words(tree)
    assert "5 other applications" in words(tree)
    assert tree.find("head/title").text == "Connections: default, replica, empty"


def test_the_page_can_be_grouped_by_the_last_statement():
    text = render_html([(MORNING, [])], by=(Field.LAST,))
    (table,) = parsed(text).findall(".//table[@class='groups']")
    header = [each.text for each in table.find("thead/tr")]
    assert header == ["Sessions", "Last", "Longest", "Would end", "Spared"]


def test_growth_is_in_every_format():
    earlier = replace(look(observed_at=NOON - timedelta(seconds=10)))
    found = meanings(MORNING, earlier)
    assert "grew by 47 in 10s" in "\n".join(render_report(MORNING, found))
    assert "grew by 47 in 10s" in render_html([(MORNING, found)])
    assert "grew by 47 in 10s" in render_report_json(MORNING, found)[0]
