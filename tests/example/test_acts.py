"""The leak, its end and its cure, asserted without and then with the demo's own code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

DOWNLOADS, AT_ONCE = 60, 6


def download(server: httpx.Request, client_of, count: int = DOWNLOADS) -> list[int]:
    """Ask for one asset again and again, as nginx does, and return the statuses."""

    def ask(_: int) -> int:
        with (
            client_of(server) as client,
            client.stream("GET", f"/api/assets/{asset}/download") as response,
        ):
            try:
                response.read()
            except httpx.RemoteProtocolError:
                return response.status_code
            raise AssertionError(f"the body of {response.status_code} did not break off")

    with client_of(server) as client:
        asset = client.get("/api/assets").json()["results"][0]["id"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, range(count)))


def test_failed_sends_leak_and_idle_reaper_gives_the_slots_back(stage, sessions, client_of):
    with stage.serve("off") as server:
        assert set(download(server, client_of)) == {200}
        left = sessions()
        assert left > 0
        order = ["idle_reaper", "--database", "operator", "--user", stage.role, "--idle-for", "1s"]
        dry = stage.manage(*order, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert f"would signal {left}" in dry.stdout
        assert sessions() == left
        wet = stage.manage(*order)
        assert wet.returncode == 0, wet.stderr
        assert f"signalled {left}" in wet.stdout
        assert sessions() == 0
        with client_of(server) as client:
            assert client.get("/api/tasks").status_code == 200


@pytest.mark.parametrize("guard", ["app", "middleware"])
def test_failed_sends_leave_nothing_with_conn_guard(stage, sessions, client_of, guard):
    with stage.serve(guard) as server:
        assert set(download(server, client_of)) == {200}
        assert sessions() == 0


@pytest.mark.parametrize("guard", ["app", "middleware"])
def test_threads_streams_and_lists_leave_nothing_with_conn_guard(stage, sessions, client_of, guard):
    with stage.serve(guard) as server, client_of(server) as client:
        task = client.get("/api/tasks").json()["results"][0]["id"]
        for _ in range(3):
            assert client.get(f"/api/tasks/{task}/statistics").status_code == 200
            assert client.get(f"/api/tasks/{task}/export").status_code == 200
            with client.stream("GET", f"/api/tasks/{task}/export") as response:
                next(response.iter_raw(64))
        assert sessions() == 0


def test_the_acts_show_what_they_have_to(stage, past_django):
    from demo.acts import ENOUGH_ERRORS, Play
    from demo.meter import Meter

    said: list[str] = []
    with Meter(stage) as meter:
        play = Play(stage, meter, times=1, say=said.append)
        assert play.run() == []
    leak, reap, *guarded = play.acts
    assert leak.statuses[500] >= ENOUGH_ERRORS
    assert stage.slots * 3 // 4 <= leak.left <= leak.peak <= stage.slots
    assert (reap.requests, reap.errors, reap.left) == (20, 0, 0)
    assert reap.peak == leak.left
    for act in guarded:
        assert (act.requests, act.errors, act.left) == (leak.requests, 0, 0)
        assert act.peak < stage.slots // 2
    assert any(line.startswith("the server's log: FATAL") for line in said)
