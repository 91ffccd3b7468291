"""The admin page, the report, its metrics and the reaper agree on which sessions would end."""

from __future__ import annotations

import random
import re

import pytest
from django.test import override_settings

from tests.postgres.admin_site import admin_project
from tests.postgres.admin_site.visit import Operator
from tests.postgres.test_conn_report import crowd, report, started  # noqa: F401
from tests.support.polling import until
from tests.support.reaping import reap

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = {
    "REAP_IDLE_FOR": [0.1, 3600],
    "REAP_IDLE_IN_TRANSACTION_FOR": [None, 0.1, 3600],
    "PROTECTED_APPLICATIONS": [["psql*"], [], ["shop:server"], ["shop:*"]],
}
STATES = ("idle", "idle in transaction")
SAMPLE = re.compile(r"^conn_guard_(\w+)\{(.*?)\} (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def project(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), admin_project():
        yield


def metrics(text):
    """Return the values by the metric's name and its state or reason."""
    return {
        (name, *re.findall(r'(?:state|reason)="(.*?)"', labels)): float(value)
        for name, labels, value in SAMPLE.findall(text)
    }


def test_page_report_metrics_and_reaper_agree_on_random_settings(server, crowd):  # noqa: F811
    choice = random.Random(13)
    operator = Operator("view")
    pids = {each.pid for each in crowd}
    judged = set()
    for _ in range(16):
        given = {name: choice.choice(values) for name, values in SETTINGS.items()}
        role = choice.choice(["app", "boss", "billing"])
        with server.alias(USER=role), override_settings(CONN_GUARD=given):
            dry = reap("--database", "own", "--dry-run")
            until(lambda: not server.reapers())
            told = report("--database", "own")
            until(lambda: not server.reapers("report"))
            page = operator.look().verdicts
            read = metrics(report("--database", "own", format="prometheus").stdout)
            shown = {state: operator.look(state=state).verdicts for state in STATES}
        events = {
            pid: "idle" if event["action"] == "would_signal" else event["reason"]
            for pid, event in dry.sessions.items()
            if pid in pids
        }
        assert {pid: slug for pid, slug in page.items() if pid in pids and slug} == events, given
        would_end = sum(slug == "idle" for slug in page.values())
        assert told.report["would_end"] == would_end == list(events.values()).count("idle")
        assert told.report["slots_used"] == read["server_slots_used",]
        assert read["server_sessions_hidden",] == told.report["hidden"]
        for state in STATES:
            assert read.get(("server_sessions", state), 0) == len(shown[state])
        judged |= set(events.values())
    assert judged >= {"idle", "too_young", "protected_application", "advisory_lock", "listen"}


def test_the_run_signals_the_sessions_that_the_page_showed(server, crowd, tmp_path):  # noqa: F811
    file = tmp_path / "reaper.prom"
    with server.alias():
        page = Operator("view").look().verdicts
        run = reap("--database", "own", metrics_file=str(file))
    signalled = {pid for pid, event in run.sessions.items() if event["action"] == "signalled"}
    assert signalled == {pid for pid, slug in page.items() if slug == "idle"}
    read = metrics(file.read_text())
    assert read["reaper_last_run_signalled",] == len(signalled)
    spared = [slug for pid, slug in page.items() if slug not in ("", "idle", "too_young", "active")]
    for reason in set(spared):
        assert read["reaper_last_run_spared", reason] == spared.count(reason)
    until(lambda: not server.reapers())
