"""The alerts, the dashboard and their page: promtool takes them, and what they name exists."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from django.core.management import call_command

from conn_guard.sessions.render import metrics as textfile
from tests.postgres.howto import lines
from tests.support import programs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "monitoring"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
GROUPS = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
CASES = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
COMMANDS = {
    name: rule["annotations"]["command"].replace("{{ $labels.alias }}", "default")
    for name, rule in RULES.items()
    if "command" in rule["annotations"]
}


def of_page(language):
    return re.findall(rf"^```{language}\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)


def promtool(needs_program, *arguments, folder=FOLDER):
    command = [needs_program("promtool"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules_and_every_case_holds(needs_program):
    promtool(needs_program, "check", "rules", "alerts.yml")
    promtool(needs_program, "test", "rules", "alerts_test.yml")


@pytest.mark.parametrize("name", RULES)
def test_an_alert_has_a_case_that_fires_and_one_that_is_silent(name):
    asked = [
        bool(question["exp_alerts"])
        for case in CASES
        for question in case["alert_rule_test"]
        if question["alertname"] == name
    ]
    assert set(asked) == {True, False}


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_how_bad_it_is_and_where_to_go_on(name):
    rule = RULES[name]
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert {"summary", "description", "page"} <= set(rule["annotations"])
    assert (ROOT / rule["annotations"]["page"]).is_file()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS.values()))
def test_what_an_alert_says_to_type_runs(command):
    program, script, name, *arguments = shlex.split(command.replace("10s", "0.2s"))
    assert (program, script) == ("python", "manage.py")
    if name == "idle_reaper" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    call_command(name, *arguments, stdout=io.StringIO(), stderr=io.StringIO())


def test_the_page_names_every_alert():
    assert re.findall(r"^\| `(ConnGuard\w+)`", PAGE, re.MULTILINE) == list(RULES)


def test_the_pages_configuration_is_what_promtool_takes(needs_program, tmp_path):
    (configuration,) = of_page("yaml")
    (tmp_path / "prometheus.yml").write_text(configuration)
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    check, run_cases = of_page("sh promtool")[0].splitlines()
    _, *arguments = shlex.split(check.replace("/etc/prometheus/", ""))
    promtool(needs_program, *arguments, folder=tmp_path)
    *words, cases = shlex.split(run_cases)
    assert words == ["promtool", "test", "rules"]
    assert (ROOT / cases).is_file()


def test_the_reapers_crontab_line_is_the_one_of_the_page_on_cron():
    reaper, _ = of_page("crontab")
    assert reaper in lines("run-the-reaper-from-cron", "crontab")


@pytest.mark.django_db(transaction=True)
def test_node_exporter_shows_what_the_reports_crontab_line_writes(needs_program):
    exporter = needs_program("prometheus-node-exporter")
    (make_folder,), (setting,) = of_page("sh folder"), of_page("sh exporter")
    reaper, report = of_page("crontab")
    before, name, arguments = re.split(r"manage\.py (\w+) ", report)
    assert name == "conn_report"
    assert reaper.startswith(before)

    def command(folder, port):
        def here(line):
            return shlex.split(line.replace("/var/lib/node_exporter", str(folder / "textfile")))

        subprocess.run(here(make_folder.replace("-o shop", f"-o {os.getuid()}")), check=True)
        call_command(name, *here(arguments))
        (options,) = here(setting.removeprefix("ARGS="))
        return [exporter, f"--web.listen-address=127.0.0.1:{port}", options]

    with programs.running(command) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert 'conn_guard_server_slots_used{alias="default"}' in page
    assert re.search(r'^node_textfile_mtime_seconds{file="\S+/conn_report.prom"}', page, re.M)


# The dashboard


def metrics_of(expression):
    return set(re.findall(r"conn_guard_\w+", expression))


def exported():
    """Return the names of the metrics in the textfile and in the web processes."""
    web = ROOT / "src" / "conn_guard" / "contrib" / "prometheus" / "metrics.py"
    names = re.findall(r'"(conn_guard_\w+)"', web.read_text(encoding="utf-8"))
    assert len(names) == 6
    return {f"conn_guard_{name}" for name, _ in textfile._METRICS} | set(names)


def test_the_alerts_and_the_dashboard_name_only_metrics_that_exist():
    known = exported()
    alerts = {name for rule in RULES.values() for name in metrics_of(rule["expr"])}
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    shown = {name for expression in queries for name in metrics_of(expression)}
    assert alerts <= known
    assert shown <= known
    # The two that are on no panel: when the last run was, and how long it took.
    assert known - shown == {
        "conn_guard_reaper_last_run_timestamp_seconds",
        "conn_guard_reaper_last_run_duration_seconds",
    }


def test_the_dashboard_takes_its_datasource_as_an_input():
    (datasource,) = DASHBOARD["__inputs"]
    assert (datasource["type"], datasource["pluginId"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": f"${{{datasource['name']}}}"}
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["datasource"] == wanted
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])


def test_the_panels_share_no_cell_and_no_id():
    panels = DASHBOARD["panels"]
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    required = {each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"}
    assert {panel["type"] for panel in panels} == required
