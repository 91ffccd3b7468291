"""The notes about sessions, and the fullest of several limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from conn_guard.sessions.census import Limits, nearest_limit, note_no_session, note_none_due
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import State
from tests.core.rows import hidden, session

POLICY = Policy(idle_for=timedelta(minutes=10), login_role="shop", database="shop")


def idle(*seconds, **fields):
    return [
        session(pid=pid, idle_for=timedelta(seconds=each), **fields)
        for pid, each in enumerate(seconds, 1)
    ]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (idle(124, 90, 61), "none is due yet; --idle-for 1m would end 3"),
        (idle(124, 130), "none is due yet; --idle-for 2m would end 2"),
        (idle(599, 20, 1), "none is due yet; --idle-for 5m would end 1"),
        (idle(124, holds_advisory_lock=True), "none is due yet"),
        (idle(29.9), "none is due yet"),
    ],
)
def test_the_note_names_the_longest_threshold_that_ends_the_most(rows, note):
    assert note_none_due(rows, POLICY, None) == [note]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        idle(124, state=State.ACTIVE),
        idle(124, backend_type="walsender"),
        idle(124, user="other"),
        idle(124, application_name="conn_guard:idle_reaper"),
    ],
)
def test_without_an_idle_session_in_scope_there_is_no_note(rows):
    assert note_none_due(rows, POLICY, None) == []


def test_the_note_counts_like_the_run_that_it_recommends():
    rows = idle(124, 123, 122, 121)
    assert note_none_due(rows, replace(POLICY, keep=1), None) == [
        "none is due yet; --idle-for 2m would end 3"
    ]
    assert note_none_due(rows, POLICY, 2) == ["none is due yet; --idle-for 2m would end 2"]
    assert note_none_due(rows, POLICY, 0) == ["none is due yet"]


def test_a_login_role_without_another_session_is_noted_unless_a_role_is_named():
    reaper = session(application_name="conn_guard:idle_reaper")
    (note,) = note_no_session([reaper, session(user="other")], POLICY)
    assert note == ("role shop has no other session here; name the application's role with --user")
    assert note_no_session([reaper, session()], POLICY) == []
    assert note_no_session([reaper], replace(POLICY, users=("other",))) == []


@pytest.mark.parametrize(
    ("limits", "slots"),
    [
        (Limits(server=10, database=None, roles={}), Slots(3, 10, exact=True)),
        (Limits(server=10, database=4, roles={}), Slots(2, 4, exact=True)),
        (Limits(server=10, database=4, roles={"shop": 2, "dba": 1}), Slots(2, 2, exact=True)),
    ],
)
def test_the_fullest_limit_counts(limits, slots):
    rows = [
        session(),
        session(),
        session(user="dba", database="other"),
        session(backend_type="walsender"),
    ]
    assert nearest_limit(rows, POLICY, limits) == slots


def test_with_hidden_rows_the_number_of_slots_is_an_upper_bound():
    limits = Limits(server=10, database=None, roles={})
    assert nearest_limit([session(), hidden()], POLICY, limits) == Slots(2, 10, exact=False)
