"""One incident under a real Prometheus: the alerts fire and resolve, and the dashboard shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.postgres.test_monitoring import DASHBOARD, of_page
from tests.support import programs

EXAMPLE = Path(__file__).parents[2] / "example_project"

pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def incident(django_db_blocker):
    """The incident after its run, with its Prometheus still there."""
    for name in ("prometheus", "prometheus-node-exporter"):
        programs.require(name)
    with pytest.MonkeyPatch.context() as patch, django_db_blocker.unblock():
        patch.syspath_prepend(EXAMPLE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE.parent / "src"), *sys.path]))
        patch.delenv("DATABASE_URL", raising=False)
        from demo.incident import staged_incident

        with staged_incident(lambda event: None) as staged:
            staged.run()
            yield staged


def at(incident, text):
    """Return the times of the events that begin with *text*."""
    return [event.at for event in incident.events if event.text.startswith(text)]


def test_the_leak_fires_the_alert_on_slots_and_the_reaper_resolves_it(incident):
    acts = ("the leak", "first aid", "the cure")
    (leak,), (aid,), (cure,) = (at(incident, each) for each in acts)
    (fires,), (resolves,) = (
        at(incident, f"ConnGuardSlotsShort {what}") for what in ("fires", "resolves")
    )
    assert leak < fires < aid < resolves < cure


def test_with_conn_guard_the_same_traffic_fires_no_alert_on_slots(incident):
    (cure,) = at(incident, "the cure")
    assert incident.cure.total() >= incident.leak.total()
    assert set(incident.cure) == {200}
    assert max(at(incident, "ConnGuardSlotsShort")) < cure
    (most,) = incident.prometheus.query(
        "max_over_time(conn_guard_server_slots_used[20s]) / conn_guard_server_slots_usable"
    )
    assert float(most["value"][1]) < 0.8


def test_conn_guard_counts_the_leaks_that_it_ends(incident):
    (cure,), (end,) = at(incident, "the cure"), at(incident, "traffic ends")
    (fires,), (resolves,) = (
        at(incident, f"ConnGuardResponsesNeverClosed {what}") for what in ("fires", "resolves")
    )
    assert cure < fires < end < resolves


def test_the_reapers_alert_rests_once_it_runs(incident):
    (aid,) = at(incident, "first aid")
    assert all(aid < each for each in at(incident, "ConnGuardReaperMissing resolves"))
    assert "ConnGuardReaperMissing" not in incident.prometheus.firing()


def test_prometheus_evaluates_every_rule(incident):
    groups = incident.prometheus.ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_query_of_the_dashboard_has_data(incident, panel):
    from demo.panels import expressions

    start, end = incident.events[0].at, incident.events[-1].at
    for _, expression in expressions(panel):
        found = incident.prometheus.query_range(expression, start, end, 1)
        # No session may be spared in a run.
        assert found or "spared" in expression, expression


def test_the_picture_has_every_panel_and_every_event(incident, tmp_path):
    from demo import panels

    panels.write(incident.prometheus, incident.events, tmp_path / "picture.svg")
    picture = ElementTree.parse(tmp_path / "picture.svg")
    texts = [element.text for element in picture.findall(".//{*}text")]
    assert {panel["title"] for panel in DASHBOARD["panels"]} <= set(texts)
    told = picture.findtext("{*}title")
    assert all(event.text in told for event in incident.events)


def test_the_page_shows_such_a_timeline(incident):
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
