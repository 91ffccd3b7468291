"""The pages about metrics name what is exported, and their blocks run."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import metadata
from pathlib import Path
from typing import get_args

import pytest
from django.apps import AppConfig
from django.db import connections

pytest.importorskip("opentelemetry.sdk.metrics")

from conn_guard.connections import events
from tests.django.test_opentelemetry import Reading, read
from tests.django.test_prometheus import NAMES
from tests.leaks.metrics_site import guide
from tests.support.polling import until

__all__ = ["read"]

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def section(heading: str) -> str:
    [text] = re.findall(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", REFERENCE.read_text(), re.M | re.S
    )
    return text


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows that begin with a name."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def block(language: str, note: str = "") -> str:
    fence = f"{language} {note}".strip()
    [text, *_] = re.findall(rf"^```{fence}\n(.*?)^```", guide.PAGE.read_text(), re.M | re.S)
    return text


def test_the_reference_lists_every_metric_and_reason():
    found = rows(section("Connections of the application, for Prometheus"))
    metrics = {names(first)[0]: rest for first, *rest in found if "conn_guard_" in first}
    assert {name: set(names(labels)) for name, (_, labels, _) in metrics.items()} == NAMES
    for name, (kind, *_) in metrics.items():
        assert kind == ("counter" if name.endswith("_total") else "gauge")
    others = [names(first)[0] for first, *_ in found if "conn_guard_" not in first]
    assert others == ["reason", *events.REASONS]


def test_the_reference_lists_every_instrument(read, pooled):
    alias = pooled("conn_guard.engine.postgresql")
    connections[alias].ensure_connection()
    for kind in get_args(events.Kind):
        events.report(kind, alias, "owner" if kind == "closed" else "", 0.1)
    listed = {
        name: names(unit)[0]
        for first, unit, _ in rows(section("Connections of the application, for OpenTelemetry"))
        for name in names(first)
    }
    until(lambda: {name: each.unit for name, each in read().metrics.items()} == listed)


def test_the_settings_name_apps():
    for text in re.findall(r"^```python settings\n(.*?)^```", guide.PAGE.read_text(), re.M | re.S):
        defined = {"INSTALLED_APPS": []}
        exec(text, defined)
        [name] = defined["INSTALLED_APPS"]
        assert AppConfig.create(name).label == name.replace(".contrib.", "_")


def test_an_own_provider_is_measured_with(listened, alias):
    reader = guide.run("provider")["reader"]
    connections[alias].ensure_connection()
    until(lambda: "conn_guard.connections.opened" in Reading(reader).metrics)


def test_the_extras_exist():
    [line, other] = re.findall(r"^pip install (.*)$", guide.PAGE.read_text(), re.M)
    extras = metadata("conn-guard").get_all("Provides-Extra")
    assert {*re.findall(r"\[(\w+)\]", line + other)} <= {*extras}


def test_the_folder_of_the_multiprocess_mode_is_empty(tmp_path):
    kept = tmp_path / "metrics" / "counter_1.db"
    kept.parent.mkdir()
    kept.touch()
    script = block("sh", "metrics").replace("/run/shop", str(tmp_path))
    done = subprocess.run(
        ["sh", "-euc", f'{script}\nprintf %s "$PROMETHEUS_MULTIPROC_DIR"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == str(kept.parent)
    assert not kept.exists()


def test_promtool_accepts_the_scrape(tmp_path, needs_program):
    path = tmp_path / "prometheus.yml"
    path.write_text(block("yaml", "prometheus.yml"))
    subprocess.run([needs_program("promtool"), "check", "config", path], check=True)
