from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.policy import Policy
from conn_guard.sessions.render.advice import render_advice
from conn_guard.sessions.render.json import render_json
from conn_guard.sessions.render.metrics import parse_last_success, render_metrics
from conn_guard.sessions.render.text import render_bar, render_failure, render_line, render_table
from conn_guard.sessions.report import Action, Exit, Outcome, Report, Slots, Status
from conn_guard.sessions.session import State
from conn_guard.text import duration, one_line, printable, sql_name
from tests.core.rows import session

GOLDENS = Path(__file__).with_name("goldens")
NAUGHTY = 'shop\n\x1b[31m"\u202e😀'

REPORT = Report(
    alias="default",
    address="shop@db:5432/shop",
    outcomes=[
        Outcome(session(pid=101, idle_for=timedelta(hours=26)), Action.SIGNALLED),
        Outcome(session(pid=102, application_name="shop:server:77", client=None), Action.SIGNALLED),
        Outcome(
            session(pid=103, user="dba", is_superuser=True), Action.FAILED, "permission_denied"
        ),
        Outcome(session(pid=104, holds_advisory_lock=True), Action.SPARED, "advisory_lock"),
        Outcome(session(pid=105), Action.SPARED, "moved_on"),
        Outcome(session(pid=106), Action.SPARED, "moved_on"),
        Outcome(session(pid=107, idle_for=timedelta(seconds=59)), Action.NOT_DUE, "too_young"),
        Outcome(
            session(pid=108, state=State.DISABLED, idle_for=None),
            Action.SPARED,
            "track_activities_off",
        ),
        Outcome(
            session(pid=109, application_name="conn_guard:idle_reaper", is_self=True),
            Action.SPARED,
            "self",
        ),
    ],
    gone=1,
    survivors=1,
    slots=Slots(87, 97, exact=True),
    census={"idle": (41, 93600.0), "active": (3, 0.25)},
    seconds=0.4142,
)
DRY = replace(
    REPORT,
    dry_run=True,
    outcomes=[replace(each, action=Action.WOULD_SIGNAL) for each in REPORT.outcomes[:2]],
    gone=0,
    survivors=0,
    slots=Slots(87, 97, exact=False),
)


def lines(name: str) -> list[str]:
    return (GOLDENS / name).read_text(encoding="utf-8").splitlines()


def test_text_of_a_run():
    assert [*render_table(REPORT.outcomes), render_line(REPORT), render_failure(REPORT)] == lines(
        "run.txt"
    )


def test_text_of_a_dry_run():
    assert [*render_table(DRY.acted_on), render_line(DRY)] == lines("dry_run.txt")


def test_json_of_a_run():
    assert render_json(REPORT) == lines("run.jsonl")


def test_metrics_of_a_run():
    failed = Report(alias="replica", failure="gone", failed_with=Exit.UNREACHABLE)
    text = render_metrics(
        [REPORT, failed], now=1_800_000_000.5, earlier={"replica": 1_799_999_940.0}
    )
    assert text.splitlines() == lines("run.prom")


@pytest.mark.parametrize(
    ("report", "exit_code", "line"),
    [
        (replace(REPORT, outcomes=REPORT.outcomes[:1], gone=1, survivors=0), Exit.DONE, None),
        (REPORT, Exit.PARTIAL, "default: of 3 signals 1 failed and 1 didn't end their session."),
        (
            replace(
                REPORT,
                outcomes=[],
                survivors=None,
                gone=None,
                failure="lost\nit",
                failed_with=Exit.UNREACHABLE,
            ),
            Exit.UNREACHABLE,
            "lost it",
        ),
        (replace(REPORT, interrupted_by=15), 143, "default: stopped by SIGTERM after 2 signals."),
        (replace(REPORT, interrupted_by=2, failure="x", failed_with=Exit.USAGE), 130, None),
        (replace(REPORT, outcomes=[], survivors=0, status=Status.ALREADY_RUNNING), Exit.DONE, None),
    ],
)
def test_each_report_asks_for_an_exit_code_and_says_why(report, exit_code, line):
    assert report.exit_code == exit_code
    if line is not None:
        assert render_failure(report) == line


def test_every_session_at_rest_for_long_enough_is_a_candidate_but_our_own():
    assert REPORT.candidates == 7
    assert REPORT.signalled + REPORT.failed + sum(REPORT.spared.values()) - 1 == REPORT.candidates


def test_idle_counts_clients_sessions_in_that_state_and_neither_walsenders_nor_reapers():
    rows = [
        session(idle_for=timedelta(seconds=124)),
        session(idle_for=timedelta(seconds=5)),
        session(backend_type="walsender", idle_for=timedelta(days=9)),
        session(application_name="conn_guard:idle_reaper", idle_for=timedelta(days=9)),
        session(is_self=True, idle_for=timedelta(days=9)),
        session(state=State.IDLE_IN_TRANSACTION, idle_for=timedelta(days=9)),
    ]
    report = replace(REPORT, outcomes=[Outcome(each, Action.NOT_DUE, "too_young") for each in rows])
    assert (report.idle, report.longest_idle_seconds, report.candidates) == (2, 124.0, 0)
    assert "  idle 2 (longest 2m04s)  due 0  " in render_line(report)
    summary = json.loads(render_json(report)[-1])
    assert (summary["idle"], summary["longest_idle_seconds"]) == (2, 124.0)


def test_idle_is_0_without_a_longest_and_unknown_where_nothing_was_listed():
    assert "  idle 0  due 0  " in render_line(replace(REPORT, outcomes=[]))
    (summary,) = map(json.loads, render_json(Report(alias="a", status=Status.ALREADY_RUNNING)))
    assert (summary["idle"], summary["longest_idle_seconds"]) == (None, None)


def test_metrics_of_a_dry_run_are_those_of_the_server_and_keep_the_earlier_success():
    text = render_metrics([DRY], now=1_800_000_000.5, earlier={"default": 1_700_000_000.0})
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names == {
        "conn_guard_server_sessions",
        "conn_guard_server_oldest_idle_seconds",
        "conn_guard_server_slots_usable",
        "conn_guard_server_slots_used",
        "conn_guard_server_sessions_hidden",
        "conn_guard_reaper_last_success_timestamp_seconds",
    }
    assert parse_last_success(text) == {"default": 1_700_000_000.0}


@pytest.mark.parametrize(
    ("report", "part"),
    [
        (
            replace(REPORT, status=Status.ALREADY_RUNNING, slots=None),
            "shop  already running  0.41 s",
        ),
        (
            replace(DRY, dry_run=False, status=Status.BELOW_THRESHOLD),
            "  below --when-above  idle 2 (longest 1d02h)  due 2  would signal 2  ",
        ),
        (replace(REPORT, gone=None, survivors=None), "  gone ?  survivors ?  "),
        (replace(REPORT, slots=Slots(97, 97, exact=True)), "  slots 97/97 (100%)  "),
        (
            replace(REPORT, slots=Slots(99, 97, exact=True)),
            "  slots 97/97 (100% and 2 beyond the limit)  ",
        ),
        (
            replace(REPORT, slots=Slots(99, 97, exact=False)),
            "  slots ≤97/97 (≤100% and up to 2 beyond the limit)  ",
        ),
        (
            replace(REPORT, slots=Slots(3, 0, exact=True)),
            "  slots 0/0 (100% and 3 beyond the limit)  ",
        ),
    ],
)
def test_the_line_of_an_alias_says_how_it_went(report, part):
    assert part in render_line(report)
    assert "\n" not in render_line(report)


def test_a_failure_before_anything_was_done_has_no_summary():
    failed = Report(alias="default", failure="no\nway", failed_with=Exit.BLIND)
    events = [json.loads(line) for line in render_json(failed)]
    assert events == [{"event": "error", "alias": "default", "exit": 4, "message": "no way"}]


def test_a_failure_in_mid_run_tells_both():
    failed = replace(
        REPORT, failure="lost", failed_with=Exit.UNREACHABLE, gone=None, survivors=None
    )
    *_, error, summary = (json.loads(line) for line in render_json(failed))
    assert error["event"] == "error"
    assert (summary["signalled"], summary["gone"], summary["exit"]) == (2, None, 5)


def test_an_alias_that_was_reaped_under_another_name_reports_nothing():
    mirror = replace(REPORT, alias="replica", mirror_of="default")
    assert render_json(mirror) == []
    assert "replica" not in render_metrics([REPORT, mirror], now=1.0, earlier={})


def test_names_reach_a_terminal_escaped():
    naughty = Outcome(
        session(user=NAUGHTY, database=NAUGHTY, application_name=NAUGHTY), Action.SIGNALLED
    )
    report = replace(REPORT, alias=NAUGHTY, address=NAUGHTY, outcomes=[naughty], failure=NAUGHTY)
    shown = [
        *render_table(report.outcomes),
        render_line(report),
        render_failure(report),
        *render_json(report),
    ]
    assert all(line.isprintable() for line in shown)
    assert json.loads(render_json(report)[0])["application_name"] == NAUGHTY
    assert printable(NAUGHTY) == 'shop\\n\\x1b[31m"\\u202e😀'
    assert one_line(" a\n\n b\tc\r") == "a b c"


@given(name=st.text(), success=st.floats(0, 4e9))
def test_an_alias_keeps_its_last_success_whatever_its_name(name, success):
    failed = Report(alias=name, failure="x", failed_with=Exit.UNEXPECTED)
    text = render_metrics([failed], now=1.0, earlier={name: success})
    assert parse_last_success(text) == {name: success}


def test_a_file_that_is_none_of_ours_has_no_last_success():
    assert parse_last_success("# HELP other\nother 1\n") == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (605, "10m05s"),
        (3600, "1h00m"),
        (11220, "3h07m"),
        (187200, "2d04h"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_bar_fills_up():
    assert render_bar(0, 8, width=4) == "[....] 0/8"
    assert render_bar(4, 8, width=4) == "[##..] 4/8"
    assert render_bar(8, 8, width=4) == "[####] 8/8"


@pytest.mark.parametrize(
    ("name", "sql"), [("shop", "shop"), ("Shop", '"Shop"'), ('a"b', '"a""b"'), ("1a", '"1a"')]
)
def test_names_are_quoted_where_sql_needs_it(name, sql):
    assert sql_name(name) == sql


@pytest.mark.parametrize(
    ("policy", "statements"),
    [
        (Policy(idle_for=timedelta(minutes=10), login_role="shop", database="Shop"), [
            """ALTER ROLE shop IN DATABASE "Shop" SET idle_session_timeout = '600000ms';""",
        ]),
        (Policy(idle_for=timedelta(seconds=0.5), users=("*",), any_database=True), [
            "ALTER ROLE ALL SET idle_session_timeout = '500ms';",
        ]),
        (
            Policy(
                idle_for=timedelta(seconds=90),
                idle_in_transaction_for=timedelta(seconds=5),
                users=("a", "b"),
                any_database=True,
            ),
            [
                "ALTER ROLE a SET idle_session_timeout = '90000ms';",
                "ALTER ROLE a SET idle_in_transaction_session_timeout = '5000ms';",
                "ALTER ROLE b SET idle_session_timeout = '90000ms';",
                "ALTER ROLE b SET idle_in_transaction_session_timeout = '5000ms';",
            ],
        ),
    ],
)  # fmt: skip
def test_advice_is_sql_that_can_be_run_as_it_is(policy, statements):
    advice = render_advice(policy)
    assert [line for line in advice if not line.startswith("--")] == statements
    assert re.search("no session is spared", "\n".join(advice))
