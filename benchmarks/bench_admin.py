"""Measure how long the server takes to make the admin page of a server with many sessions.

    python -m benchmarks.bench_admin
    python -m benchmarks.bench_admin --sessions 2000

It starts a PostgreSQL of its own, opens real sessions of 150 applications on it, and prints the
median and the longest time of a request for the first page, for a later page in another order, for
a refresh, and for the question about the largest group; and the processor time that Python took.
2000 sessions take a minute and 4 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tools.local_postgres import LocalPostgres  # noqa: E402

PAGE = "/admin/conn_guard_admin/session/"
APPLICATIONS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long the admin page takes.")
    parser.add_argument("--sessions", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="requests of a kind (%(default)s)")
    options = parser.parse_args()
    with LocalPostgres(max_connections=options.sessions + 20) as server:
        os.environ["DATABASE_URL"] = server.url()
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        measure(options.sessions, options.rounds)


def measure(sessions: int, rounds: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.db.backends.postgresql.base import Database
    from django.test import Client, override_settings

    from tests.postgres.admin_site import SETTINGS

    project = {**SETTINGS, "MIGRATION_MODULES": {}, "CONN_GUARD": {"REAP_IDLE_FOR": 1}}
    with override_settings(**project):
        call_command("migrate", verbosity=0)
        from django.contrib.auth.models import User

        client = Client()
        client.force_login(User.objects.create_superuser("operator"))
        parameters = connection.get_connection_params()
        known = {key: parameters[key] for key in ("dbname", "user", "host", "port")}
        opened = []
        for number in range(sessions):
            # Half of the sessions are those of one application.
            name = f"app-{number % APPLICATIONS}" if number % 2 else "shop"
            opened.append(Database.connect(**known, application_name=name))
            opened[-1].autocommit = True
            opened[-1].cursor().execute("SELECT id, password FROM auth_user WHERE id = 1")
        time.sleep(1.5)
        text = client.get(PAGE).content.decode()
        tokens = re.findall(r'name="_selected_action" value="([\d: ]+)"', text)[0]
        asked = {"action": "terminate", "_selected_action": tokens}
        kinds: dict[str, Callable[[], object]] = {
            "first page": lambda: client.get(PAGE),
            "page 3 by application": lambda: client.get(PAGE, {"o": "application", "p": "3"}),
            "refresh": lambda: client.get(PAGE, headers={"X-Conn-Guard-Refresh": "1"}),
            f"question about {len(tokens.split())}": lambda: client.post(PAGE, asked),
        }
        print(f"{sessions} sessions, Django {django.__version__}")
        for kind, ask in kinds.items():
            times, worked = [], []
            for _ in range(rounds):
                began, worked_before = time.perf_counter(), time.process_time()
                ask()
                times.append(time.perf_counter() - began)
                worked.append(time.process_time() - worked_before)
            print(
                f"{kind:22} median {statistics.median(times):.3f} s  longest {max(times):.3f} s"
                f"  of Python {statistics.median(worked):.3f} s"
            )
        for each in opened:
            each.close()
        connection.close()


if __name__ == "__main__":
    main()
