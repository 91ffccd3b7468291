"""The metrics of the example agree with pg_stat_activity while its downloads leak."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from tests.example.conftest import CHECKOUT
from tests.support.polling import until

parser = pytest.importorskip("prometheus_client.parser")


@pytest.mark.parametrize("guard", ["off", "middleware"])
def test_open_connections_agree_with_the_server(stage, past_django, guard):
    from demo.meter import Meter
    from demo.traffic import ask, asset_paths

    path = os.pathsep.join([os.environ["PYTHONPATH"], str(CHECKOUT)])
    settings = "tests.example.metrics_site.settings"
    environment = {"DJANGO_SETTINGS_MODULE": settings, "PYTHONPATH": path}
    served = replace(stage, environment={**stage.environment, **environment})

    def scrape() -> dict[str, dict[str, float]]:
        """Return the values of each metric by their reason."""
        text = httpx.get(f"{server.url}/metrics", timeout=30, trust_env=False).text
        read: dict[str, dict[str, float]] = {}
        for family in parser.text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("alias", "default") == "default":
                    name = sample.name.removeprefix("conn_guard_")
                    read.setdefault(name, {})[sample.labels.get("reason", "")] = sample.value
        return read

    with Meter(stage) as meter, served.serve(guard) as server:
        for number in (10, 40):
            downloads = itertools.islice(itertools.cycle(asset_paths(server)), number)
            statuses: Counter[int] = Counter()
            ask(server, downloads, statuses)
            assert statuses == {200: number}
            until(lambda: scrape()["connections_open"][""] == meter.now())
        # One scrape, because Python's garbage collector closes connections between two.
        read = scrape()
        open_now, opened = read["connections_open"][""], read["connections_opened_total"][""]
        closed = read["connections_closed_total"]
        assert open_now == opened - sum(closed.values())
        assert opened >= 50
        if guard == "off":
            assert open_now > 0
        else:
            assert open_now == 0
            assert closed["request"] > 40
            assert read["responses_never_closed_total"][""] > 40
