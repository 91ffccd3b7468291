"""The full-screen view on a real server, driven by Textual's pilot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conn_guard.management.watch_view import WatchApp, watch
from conn_guard.sessions import login
from conn_guard.sessions.groups import DEFAULT_BY
from conn_guard.sessions.look import Observer, look_at_all
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.stop import Stop
from tests.support.own_server import OwnServer
from tests.support.reaping import new_role

pytestmark = pytest.mark.django_db(databases=[])


class Screen:
    """The running view, read and driven from a test."""

    def __init__(self, app: WatchApp, pilot: Any) -> None:
        self.app = app
        self._pilot = pilot

    @property
    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    @property
    def cells(self) -> list[list[str]]:
        """The lines of the table, cut at two blanks."""
        lines = self.text.splitlines()
        first = next(at for at, line in enumerate(lines) if re.match(r" *(SESSIONS|PID) ", line))
        return [re.split(r"  +", line.strip()) for line in lines[first:] if line.strip()]

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)
        await self._pilot.pause()

    async def shows(self, *patterns: str) -> None:
        """Wait until each of *patterns* is on the screen."""
        until = asyncio.get_running_loop().time() + 20
        while not all(re.search(each, self.text) for each in patterns):
            assert asyncio.get_running_loop().time() < until, self.text
            await asyncio.sleep(0.02)
            await self._pilot.pause()

    async def ends(self) -> None:
        """Wait until the view has been left."""
        until = asyncio.get_running_loop().time() + 20
        while self.app.return_value is None:
            assert asyncio.get_running_loop().time() < until, self.text
            await asyncio.sleep(0.02)


Play = Callable[[Screen], Awaitable[None]]


@pytest.fixture
def view(server: OwnServer, monkeypatch) -> Callable[..., WatchApp]:
    """Return a function that plays a scene on the view of the server and returns the view."""
    monkeypatch.setattr(login, "LOG_IN_FOR", timedelta(seconds=0.2))

    def run(play: Play, *, aliases: tuple[str, ...] = ("own",), **changes: Any) -> WatchApp:
        stop = Stop()
        policy = Policy(idle_for=timedelta(seconds=0.1), **changes.pop("policy", {}))
        observers = [Observer(each, policy, stop=stop) for each in aliases]
        app = WatchApp(
            observers,
            changes.pop("look", lambda: list(look_at_all(observers, stop=stop))),
            every=timedelta(seconds=0.1),
            by=DEFAULT_BY,
            command="conn-guard reap",
            stop=stop,
        )

        async def main() -> None:
            async with app.run_test(size=(80, 24)) as pilot:
                await play(Screen(app, pilot))

        try:
            asyncio.run(main())
        finally:
            app.close()
        return app

    with server.alias(), server.alias("second", NAME="template1"):
        yield run


def test_slots_groups_and_what_they_mean_are_shown(view, server):
    server.rested(*(server.session() for _ in range(3)))

    async def play(screen: Screen) -> None:
        await screen.shows(r"own app@\S+", r"\d+/37 slots", "ends 3", r"\d to \d in")
        assert screen.cells[0][0] == "SESSIONS"
        assert screen.cells[1][:4] == ["3", "idle", "shop", "app"]
        await screen.shows(r"1/\d The server hides 1 of 4", "GRANT pg_read_all_stats TO app")
        await screen.press("m")
        await screen.shows("would end 3 sessions now", "conn-guard reap --database own --dry-run")

    view(play)


def test_keys_group_sort_and_reverse(view, server):
    server.rested(*(server.session() for _ in range(2)), server.session(application_name="big"))

    async def play(screen: Screen) -> None:
        await screen.shows("ends 2")
        await screen.press("b")
        assert screen.cells[0] == ["SESSIONS", "APPLICATION", "LAST", "LONGEST", "REAPER"]
        assert [line[1] for line in screen.cells[1:4]][:2] == ["shop", "big"]
        await screen.press("s", "s")
        assert [line[1] for line in screen.cells[1:3]] == ["big", "shop"]
        await screen.shows("order: APPLICATION ↑")
        await screen.press("r")
        await screen.shows("order: APPLICATION ↓")

    view(play)


def test_a_click_on_a_title_sorts_and_a_click_on_a_line_selects(view, server):
    server.rested(server.session(), server.session(), server.session(application_name="big"))

    async def play(screen: Screen) -> None:
        await screen.shows("ends 2")
        await screen.press("b")
        table = screen.app.query_one("Lines")
        await screen._pilot.click(table, offset=(12, 0))
        await screen.shows("order: APPLICATION ↑")
        await screen._pilot.click(table, offset=(3, 1))
        await screen.shows(r"\nbig: ends 1")
        await screen.press("down")
        await screen.shows(r"\nshop: ends 2")

    view(play)


def test_the_filter_shows_only_matching_sessions_until_it_is_left(view, server):
    server.rested(server.session(), server.session(application_name="big"))

    async def play(screen: Screen) -> None:
        await screen.shows("shop", "big")
        await screen.press("slash", *"big", "enter")
        await screen.shows("filter: big")
        assert not any("shop" in line for line in screen.cells[1:2])
        await screen.press("escape")
        await screen.shows("shop")

    view(play)


def test_a_group_opens_and_closes(view, server):
    sessions = [server.session() for _ in range(3)]
    server.rested(*sessions)

    async def play(screen: Screen) -> None:
        await screen.shows("ends 3")
        await screen.press("enter")
        await screen.shows("PID", *(str(each.pid) for each in sessions))
        await screen.press("escape")
        await screen.shows("SESSIONS")

    view(play)


def test_terminating_a_group_spares_what_the_judge_spares_and_says_so(view, server, until):
    idle = [server.session() for _ in range(2)]
    locked = server.session()
    locked.execute("SELECT pg_advisory_lock(7)")
    server.rested(*idle, locked)

    async def play(screen: Screen) -> None:
        await screen.shows("ends 2")
        await screen.press("t")
        await screen.shows("Terminate 2 of 3 sessions of shop", "Not ended: advisory lock 1")
        await screen.press("n")
        assert all(map(server.alive, idle))
        await screen.press("t", "y")
        await screen.shows(rf"signalled 2; spared \(advisory lock\) 1: pid {locked.pid}\.")

    view(play)
    until(lambda: not any(map(server.alive, idle)))
    assert server.alive(locked)


def test_terminating_a_session_leaves_the_others_of_its_group(view, server, until):
    sessions = [server.session() for _ in range(2)]
    server.rested(*sessions)

    async def play(screen: Screen) -> None:
        await screen.shows("ends 2")
        await screen.press("enter", "end")
        await screen.press("t")
        await screen.shows("Terminate 1 of 1")
        await screen.press("y")
        await screen.shows("signalled 1")

    view(play)
    until(lambda: sum(map(server.alive, sessions)) == 1)


def test_a_session_that_woke_after_the_question_is_spared(view, server):
    session = server.session()
    server.rested(session)

    async def play(screen: Screen) -> None:
        await screen.shows("ends 1")
        await screen.press("p", "t")
        await screen.shows("Terminate 1 of 1")
        session.execute("BEGIN")
        await screen.press("y")
        await screen.shows(rf"signalled 0; .* 1: pid {session.pid}\.")

    view(play)
    assert server.alive(session)


def test_what_was_signalled_before_the_views_session_ended_is_told(
    view, server, signals_until_lost
):
    sessions = [server.session() for _ in range(3)]
    server.rested(*sessions)

    async def play(screen: Screen) -> None:
        await screen.shows("ends 3")
        await screen.press("p", "t")
        await screen.shows("Terminate 3 of 3")
        await screen.press("y")
        await screen.shows(
            rf"LostError: signalled 1; failed .* 1: pid {signals_until_lost[1]}; look again"
        )

    view(play)
    assert sum(map(server.alive, sessions)) == 2


def test_sessions_that_are_not_due_get_no_question(view, server):
    session = server.session()
    session.execute("SELECT pg_advisory_lock(8)")
    server.rested(session)

    async def play(screen: Screen) -> None:
        await screen.shows("advisory lock 1")
        await screen.press("t")
        await screen.shows(r"none of 1 would be ended \(advisory lock 1\)")

    view(play)
    assert server.alive(session)


def test_sessions_out_of_scope_are_not_ended(view, server):
    session = server.session(user="postgres")
    server.rested(session)

    async def play(screen: Screen) -> None:
        await screen.shows("not in scope 1")
        await screen.press("t")
        await screen.shows("none of 1 would be ended")

    view(play)
    assert server.alive(session)


def test_a_role_that_may_not_see_the_sessions_signals_none(view, server):
    with new_role(server.ask, "hidden_app"):
        session = server.session(user="hidden_app")

        async def play(screen: Screen) -> None:
            await screen.shows("hidden_app")
            await screen.press("t")
            await screen.shows("No session is signalled: role app may not see 1", "GRANT ")

        view(play, policy={"users": ("hidden_app",)})
        assert server.alive(session)
        session.close()


def test_pausing_stops_the_looks_until_it_is_pressed_again(view, server):
    async def play(screen: Screen) -> None:
        await screen.shows(r"\d+/37 slots")
        await screen.press("p")
        await screen.shows("PAUSED")
        server.session(application_name="late")
        for _ in range(5):
            await screen.press("b")
        assert "late" not in screen.text
        await screen.press("p")
        await screen.press("escape")
        await screen.shows("late")

    view(play)


def test_help_names_the_keys(view):
    async def play(screen: Screen) -> None:
        await screen.press("question_mark")
        await screen.shows("terminate the selected session", "show the next alias")
        await screen.press("escape")
        await screen.shows(r"\d+/37 slots")

    view(play)


def test_a_server_that_goes_away_is_said_and_waited_for(view, server):
    async def play(screen: Screen) -> None:
        await screen.shows(r"\d+/37 slots")
        server.forget()
        server.server.halt()
        await screen.shows("No answer, waiting: own: ")
        server.server.start()
        await screen.shows(r"\] +\d+/37 slots|\] \d+/37 slots", "·")
        assert "No answer" not in screen.text

    view(play)


def test_the_next_alias_is_shown(view):
    async def play(screen: Screen) -> None:
        await screen.shows("own app@")
        await screen.press("a")
        await screen.shows("second app@")

    view(play, aliases=("own", "second"))


def test_q_leaves_and_closes_the_views_own_session(view, server, until):
    async def play(screen: Screen) -> None:
        await screen.shows(r"\d+/37 slots")
        await screen.press("q")

    view(play)
    own = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'conn_guard:report'"
    until(lambda: not server.ask(own))


def test_an_alias_that_cannot_be_used_ends_the_view(view, server):
    with server.alias("wrong", NAME="n" * 99):
        app = view(Screen.ends, aliases=("wrong",))
    (snapshot,) = app.return_value
    assert snapshot.exit_code == 2


def test_an_unexpected_error_of_a_look_is_raised_to_the_command(view):
    def fail() -> list[Any]:
        raise ZeroDivisionError("look")

    app = view(Screen.ends, look=fail)
    assert isinstance(app.return_value, ZeroDivisionError)
    app.run = lambda: app.return_value
    with pytest.raises(ZeroDivisionError):
        watch(app)


def test_the_page_names_each_key():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "conn_report.md").read_text("utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", page.split("| key |")[1], re.MULTILINE)
    keys = {"/": "slash", "?": "question_mark", "Enter": "enter", "Esc": "escape"}
    named = {keys.get(each, each) for cell in cells for each in re.findall(r"[\w?/]+", cell)}
    assert {each.key for each in WatchApp.BINDINGS} <= named
