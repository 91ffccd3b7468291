"""One incident under a real Prometheus: the alerts fire and resolve, and the dashboard shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.postgres.test_monitoring import DASHBOARD, RULES, of_page
from tests.support import programs

EXAMPLE = Path(__file__).parents[2] / "example_project"

pytest.importorskip("prometheus_client")


@pytest.fixture
def incident(django_db_blocker, monkeypatch):
    """An incident that is ready to run, with a PostgreSQL of its own."""
    for name in ("prometheus", "prometheus-node-exporter"):
        programs.require(name)
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE.parent / "src"), *sys.path]))
    monkeypatch.delenv("DATABASE_URL")
    with django_db_blocker.unblock():
        from demo.incident import staged_incident

        with staged_incident(lambda event: None) as staged:
            yield staged


def test_alerts_fire_with_the_leak_and_resolve_with_reaper_and_conn_guard(incident, tmp_path):
    # One test, because pytest-xdist would give a second one to a worker that runs all of it again.
    incident.run()
    the_reaper_resolves_the_alert_on_slots(incident)
    conn_guard_keeps_it_silent_under_the_same_traffic(incident)
    conn_guard_counts_the_leaks_that_it_ends(incident)
    every_rule_is_evaluated(incident)
    every_query_of_the_dashboard_has_data(incident)
    the_picture_has_every_panel_and_every_event(incident, tmp_path / "picture.svg")
    the_page_shows_such_a_timeline(incident)


def at(incident, text):
    """Return the times of the events that begin with *text*."""
    return [event.at for event in incident.events if event.text.startswith(text)]


def the_reaper_resolves_the_alert_on_slots(incident):
    acts = ("the leak", "first aid", "the cure")
    (leak,), (aid,), (cure,) = (at(incident, each) for each in acts)
    (fires,), (resolves,) = (
        at(incident, f"ConnGuardSlotsShort {what}") for what in ("fires", "resolves")
    )
    assert leak < fires < aid < resolves < cure
    assert "ConnGuardReaperMissing" not in incident.prometheus.firing()


def conn_guard_keeps_it_silent_under_the_same_traffic(incident):
    assert incident.cure.total() >= incident.leak.total()
    assert set(incident.cure) == {200}
    (cure,), (end,) = at(incident, "the cure"), at(incident, "traffic ends")
    share = "conn_guard_server_slots_used / conn_guard_server_slots_usable"
    (series,) = incident.prometheus.query_range(share, cure, end + 5, 1)
    assert max(float(value) for _, value in series["values"]) < 0.8


def conn_guard_counts_the_leaks_that_it_ends(incident):
    (cure,), (end,) = at(incident, "the cure"), at(incident, "traffic ends")
    (fires,), (resolves,) = (
        at(incident, f"ConnGuardResponsesNeverClosed {what}") for what in ("fires", "resolves")
    )
    assert cure < fires < end < resolves


def every_rule_is_evaluated(incident):
    groups = incident.prometheus.ask("rules")["groups"]
    healths = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert healths == dict.fromkeys(RULES, "ok")


def every_query_of_the_dashboard_has_data(incident):
    from demo.panels import expressions

    start, end = incident.events[0].at, incident.events[-1].at
    for panel in DASHBOARD["panels"]:
        for _, expression in expressions(panel):
            found = incident.prometheus.query_range(expression, start, end, 1)
            # A run need not spare a session.
            assert found or "spared" in expression, expression


def the_picture_has_every_panel_and_every_event(incident, path):
    from demo import panels

    panels.write(incident.prometheus, incident.events, path)
    picture = ElementTree.parse(path)
    texts = {element.text for element in picture.findall(".//{*}text")}
    assert {panel["title"] for panel in DASHBOARD["panels"]} <= texts
    told = picture.findtext("{*}title")
    assert all(event.text in told for event in incident.events)


def the_page_shows_such_a_timeline(incident):
    (block,) = of_page("text timeline")
    shown = [line.split(" sessions  ")[1] for line in block.splitlines()]
    happened = [event.text for event in incident.events]
    # A quick machine leaks before the reaper is missed.
    assert [text for text in shown if re.search("SlotsShort|NeverClosed|leak|cure", text)] == [
        text for text in happened if re.search("SlotsShort|NeverClosed|leak|cure", text)
    ]


@pytest.mark.parametrize(
    ("arguments", "path", "words"),
    [
        (["--picture", "absent/picture.svg"], None, "absent/picture.svg can't be written"),
        ([], "/nowhere", "is not installed: type apt-get install prometheus"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, path, words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("DATABASE_URL", None)
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    if path:
        environment["PATH"] = path
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "manage.py"), "monitor", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
