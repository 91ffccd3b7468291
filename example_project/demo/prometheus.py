"""Prometheus and node exporter as processes of the demo, with the alert rules of the docs."""

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from django.core.management.base import CommandError

from demo.stage import PROJECT, STARTS_WITHIN_SECONDS, leashed

RULES = PROJECT.parent / "docs" / "monitoring" / "alerts.yml"
CONFIGURATION = """\
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: [alerts.yml]
scrape_configs:
  - job_name: node
    static_configs:
      - targets: ["{exporter}"]
        labels: {{instance: node}}
  - job_name: web
    file_sd_configs:
      - files: [web.json]
"""


def shortened(rules: str) -> str:
    """Return alert rules in which each minute is a second, in durations and in seconds."""
    lines = []
    for line in rules.splitlines():
        if not re.match(r"\s*(#|summary:|description:|command:|page:)", line):
            line = re.sub(r"\b(\d+)h\b", lambda hours: f"{60 * int(hours[1])}m", line)
            line = re.sub(r"\b(\d+)m\b", r"\1s", line)
            line = re.sub(r"\b\d{3,}\b", lambda seconds: f"{int(seconds[0]) // 60}", line)
        lines.append(line)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus that reads *textfiles* and scrapes at most one web server."""

    address: str
    folder: Path

    @property
    def textfiles(self) -> Path:
        """The folder of node exporter's textfile collector."""
        return self.folder / "textfiles"

    def scrape_web(self, server: str) -> None:
        """From now on scrape ``/metrics`` of *server*, a URL, as the instance ``web``."""
        target = {"targets": [httpx.URL(server).netloc.decode()], "labels": {"instance": "web"}}
        # Prometheus may read the file at any time.
        new = self.folder / "web.json.new"
        new.write_text(json.dumps([target]))
        new.replace(self.folder / "web.json")

    def ask(self, path: str, **parameters: object) -> object:
        """Return the data of Prometheus' answer; raise httpx.HTTPStatusError if it has none."""
        url = f"{self.address}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=10, trust_env=False)
        return answer.raise_for_status().json()["data"]

    def query(self, expression: str) -> list[dict]:
        """Return the samples of *expression* now."""
        return self.ask("query", query=expression)["result"]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict]:
        """Return the series of *expression* from *start* to *end*, in Unix seconds."""
        return self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


def find_programs() -> list[str]:
    """Return the paths of node exporter and Prometheus. Raises CommandError if one is missing."""
    found = {name: shutil.which(name) for name in ("prometheus-node-exporter", "prometheus")}
    for name, path in found.items():
        if path is None:
            raise CommandError(
                f"{name} is not installed: type apt-get install prometheus"
                " prometheus-node-exporter.",
                returncode=2,
            )
    return list(found.values())


@contextmanager
def run_prometheus(folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus and node exporter on free ports, with their files in *folder*."""
    exporter, server = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    prometheus = Prometheus(f"http://{server}", folder)
    prometheus.textfiles.mkdir(parents=True)
    (folder / "alerts.yml").write_text(shortened(RULES.read_text(encoding="utf-8")))
    (folder / "prometheus.yml").write_text(CONFIGURATION.format(exporter=exporter))
    node_exporter, program = find_programs()
    commands = [
        [
            node_exporter,
            f"--web.listen-address={exporter}",
            "--web.disable-exporter-metrics",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={prometheus.textfiles}",
        ],
        [
            program,
            f"--web.listen-address={server}",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--log.level=warn",
        ],
    ]
    with ExitStack() as stack:
        for command in commands:
            log = folder / f"{Path(command[0]).name}.log"
            stack.enter_context(leashed(command, log))
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not _answers(f"{prometheus.address}/-/ready"):
            if time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise CommandError(f"Prometheus did not start: {lines[-1:]}", returncode=2)
            time.sleep(0.1)
        yield prometheus


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
