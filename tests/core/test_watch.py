"""The state of the live view: groups and sessions in an order, a filter, history, answers."""

from __future__ import annotations

from datetime import timedelta

import pytest

from conn_guard.sessions.groups import DEFAULT_BY, Field
from conn_guard.sessions.report import Action, Outcome, Slots
from conn_guard.sessions.session import State
from conn_guard.sessions.watch import History, Table, View, table, told
from tests.core.looks import MORNING, look, row
from tests.support.rows import session


def column(shown: Table, title: str) -> list[str]:
    at = shown.titles.index(title)
    return [line.cells[at] for line in shown.lines]


def slots(used: int, total: int = 8) -> Slots:
    return Slots(used, total, exact=True)


def test_groups_come_the_largest_first():
    shown = table(MORNING, View())
    assert column(shown, "SESSIONS") == ["41", "1", "1", "1", "1", "1", "1"]
    assert shown.lines[0].name == "shop:server, shop, shop, idle"
    assert (shown.order, shown.lines[0].would_end) == ("SESSIONS ↓", 41)


def test_numbers_fall_and_names_rise_until_they_are_reversed():
    by_time = View().sorted_by(6)
    assert column(table(MORNING, by_time), "LONGEST")[:2] == ["3h00m", "49m00s"]
    assert column(table(MORNING, by_time.sorted_by(6)), "LONGEST")[:2] == ["-", "0.0s"]
    by_name = View().sorted_by(2)
    names = column(table(MORNING, by_name), "APPLICATION")
    assert names == sorted(names)
    assert table(MORNING, by_name.sorted_by(6)).order == "LONGEST ↓"


def test_the_next_column_follows_the_last_one_with_the_first():
    view = View()
    orders = []
    for _ in range(9):
        view = view.sorted_by_next(8)
        orders.append(table(MORNING, view).order.split()[0])
    assert orders[0] == orders[8] == "SESSIONS"
    assert len(set(orders)) == 8


def test_the_grouping_passes_through_each_field_and_comes_back():
    view, seen = View(), []
    for _ in range(len(Field) + 1):
        view = view.next_by(DEFAULT_BY)
        seen.append(tuple(view.by))
    assert seen == [*((each,) for each in Field), DEFAULT_BY]


def test_an_opened_group_lists_its_sessions_the_longest_idle_first():
    first = table(MORNING, View()).lines[0]
    view = View(opened=dict(zip(DEFAULT_BY, first.key[1:], strict=True)))
    shown = table(MORNING, view)
    assert shown.titles == ["PID", "CLIENT", "LAST", "FOR", "REAPER"]
    assert len(shown.lines) == 41
    assert column(shown, "FOR")[0] == "49m00s"
    assert set(column(shown, "REAPER")) == {"ends"}


@pytest.mark.parametrize(
    ("wanted", "sessions"),
    [("SHOP:SERVER", 41), ("in transaction", 1), ("auth_user", 39), ("1001", 1), ("nothing", 0)],
)
def test_the_filter_finds_a_text_in_any_name(wanted, sessions):
    shown = table(MORNING, View(wanted=wanted))
    assert sum(len(line.rows) for line in shown.lines) == sessions


def test_a_line_says_why_sessions_would_not_be_ended():
    snapshot = look(
        row(pid=1, idle_for=timedelta(hours=1)),
        row(pid=2, idle_for=timedelta(seconds=1)),
        row(pid=3, idle_for=timedelta(hours=1), holds_advisory_lock=True),
        row(pid=4, state=State.ACTIVE),
        row(pid=5, user="other"),
    )
    (line,) = table(snapshot, View(by=(Field.APPLICATION,))).lines
    assert line.would_end == 1
    assert line.others == "not due yet 1, advisory lock 1, in use 1, not in scope 1"
    assert {pid for pid, _ in line.chosen} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("room", [1, 40, 79, 200])
@pytest.mark.parametrize("by", [DEFAULT_BY, (Field.LAST,), tuple(Field)])
def test_columns_are_cut_to_the_room_where_names_are_long_enough(room, by):
    shown = table(MORNING, View(by=by))
    widths = shown.widths(room)
    assert len(widths) == len(shown.titles)
    if len(by) <= len(DEFAULT_BY) and room >= 79:
        assert sum(widths) + 2 * (len(widths) - 1) <= room


def test_control_characters_of_a_name_are_shown_escaped():
    shown = table(look(row(application_name="\x1b[31mred")), View())
    assert column(shown, "APPLICATION") == [r"\x1b[31mred"]


def test_history_draws_a_full_server_as_a_full_column():
    history = History()
    for used in (0, 1, 4, 8, 12):
        history.add(0, slots(used))
    history.add(0, None)
    assert history.graph(8, 2) == ["     ██ ", "   ▂███·"]


def test_history_keeps_the_newest_looks_and_says_their_range():
    history = History(most=3)
    for second, used in enumerate((1, 7, 5, 3)):
        history.add(60.0 * second, slots(used))
    assert len(history.slots) == 3
    assert history.words(10) == "3 to 7 in 2m00s"
    assert history.words(2) == "3 to 5 in 1m00s"
    assert History().words(10) == ""


def test_an_answer_names_the_spared_sessions():
    outcomes = [
        Outcome(session(pid=1), Action.SIGNALLED),
        *(Outcome(session(pid=pid), Action.SPARED, "advisory_lock") for pid in range(2, 9)),
        Outcome(session(pid=10), Action.NOT_DUE, "too_young"),
        Outcome(session(pid=11), Action.FAILED, "permission_denied"),
    ]
    assert told(outcomes, 11) == (
        "signalled 1; spared (advisory lock) 7: pid 2, 3, 4, 5, 6, …; left alone (not due yet) 1:"
        " pid 10; failed (permission denied) 1: pid 11; gone before or not in scope 1"
    )
