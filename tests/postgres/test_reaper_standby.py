"""A standby is reaped like any server, and a login during recovery is tried again."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connections

from tests.support import programs
from tests.support.own_server import OwnServer, own_server
from tests.support.polling import until
from tests.support.reaping import reap
from tools.local_postgres import LocalPostgres, unprivileged

IN_RECOVERY = "SELECT pg_is_in_recovery()"


@pytest.fixture(scope="module")
def primary(django_db_blocker):
    with django_db_blocker.unblock(), own_server(settings={"wal_keep_size": "64MB"}) as server:
        yield server
        server.clean()


@pytest.fixture(scope="module")
def base_backup(primary):
    """Return a function that fills a cluster's folder with a standby of the primary."""

    def fill(cluster):
        shutil.rmtree(cluster, ignore_errors=True)
        program = _programs(primary.server) / "pg_basebackup"
        address = f"host={primary.server.host} port={primary.server.port} user=postgres"
        arguments = ["-D", str(cluster), "-d", address, "-X", "stream", "-c", "fast"]
        subprocess.run(
            [program, *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=60,
            **unprivileged(),
        )
        # Not by -R, which writes down options that the walreceiver of some builds doesn't know.
        with (cluster / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{address}'\n")
        signal = cluster / "standby.signal"
        signal.touch()
        if account := unprivileged():
            shutil.chown(signal, account["user"], account["group"])
        return cluster

    return fill


@pytest.fixture(scope="module")
def standby(primary, base_backup):
    """A hot standby of the primary."""
    with LocalPostgres(
        max_connections=40, settings={"wal_retrieve_retry_interval": "100ms"}
    ) as started:
        started.halt()
        base_backup(started.log.parent / "cluster")
        started.start()
        server = OwnServer(started)
        yield server
        server.clean()
        server.forget()


def _programs(server):
    """Return the folder of the programs that run *server*, which may be a copy."""
    options = (server.log.parent / "cluster" / "postmaster.opts").read_text()
    return server.bin.__class__(options.partition(' "')[0].strip('"')).parent


def test_a_standby_is_reaped_by_its_own_rules(primary, standby):
    assert standby.ask(IN_RECOVERY) == [(True,)]
    session, locked, there = standby.session(), standby.session(), primary.session()
    locked.execute("SELECT pg_advisory_lock(1)")
    with standby.alias():
        run = reap(*standby.rested(session, locked))
    assert (run.exit_code, run.fate(session)) == (0, ("signalled", None))
    assert run.fate(locked) == ("spared", "advisory_lock")
    assert primary.alive(there)
    locked.close()
    standby.clean()


def test_a_walsender_and_its_receiver_live_on(primary, standby):
    sender = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'"
    (before,) = until(lambda: primary.ask(sender), timeout=30)
    session, mirrored = primary.session("postgres"), standby.session("postgres")
    primary.rested(session)
    standby.rested(mirrored)
    for server in (primary, standby):
        with server.alias(USER="postgres"):
            run = reap(
                "--database",
                "own",
                "--idle-for",
                "0.2s",
                "--user",
                "*",
                "--any-database",
                "--exclude-user",
                "nobody",
            )
            assert run.exit_code == 0
        server.forget()
    assert primary.ask(sender) == [before]
    primary.clean()
    standby.clean()


def test_a_primary_and_its_replica_are_two_places(primary, standby):
    here, there = primary.session(), standby.session()
    with primary.alias(), standby.alias("replica", TEST={"MIRROR": "own"}), primary.alias("again"):
        standby.rested(there)
        arguments = primary.rested(here)
        run = reap(*arguments, "--database", "replica", "--database", "again")
    assert run.fate(here) == run.fate(there) == ("signalled", None)
    assert set(run.summaries) == {"own", "replica"}
    assert "again leads to the same place as own: reaped once" in run.stderr
    primary.clean()
    standby.clean()


def test_all_databases_leaves_standbys_out_with_a_note(primary, standby, monkeypatch):
    here, there = primary.session(), standby.session()
    with standby.alias(), primary.alias("primary"):
        for name in set(connections.settings) - {"own", "primary"}:
            monkeypatch.delitem(connections.settings, name)
        standby.rested(there)
        _, _, *idle_for = primary.rested(here)
        run = reap(*idle_for, "--all-databases")
    assert (run.exit_code, list(run.summaries)) == (0, ["primary"])
    assert run.fate(here) == ("signalled", None)
    assert standby.alive(there)
    assert "own is a standby: skipped; --database own reaps there\n" in run.stderr
    primary.clean()
    standby.clean()


def test_an_address_of_several_hosts_leads_to_the_primary(primary, standby):
    here, there = primary.session(), standby.session()
    address = {
        "HOST": "127.0.0.1,127.0.0.1",
        "PORT": f"{standby.server.port},{primary.server.port}",
        "OPTIONS": {"target_session_attrs": "read-write"},
    }
    with primary.alias(**address):
        standby.rested(there)
        run = reap(*primary.rested(here))
    assert (run.exit_code, run.fate(here)) == (0, ("signalled", None))
    assert standby.alive(there)
    primary.clean()
    standby.clean()


@contextmanager
def _closed_standby(primary, base_backup):
    """Give the port of a standby that refuses every login."""

    def configure(folder, port):
        account = unprivileged()
        if account:
            shutil.chown(folder, account["user"], account["group"])
        cluster = base_backup(folder / "cluster")
        program = str(_programs(primary.server) / "postgres")
        settings = {
            "port": port,
            "hot_standby": "off",
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [program, "-D", str(cluster), *options]

    with programs.running(configure) as port:
        yield port


def test_a_server_in_recovery_that_refuses_logins_is_exit_5(primary, base_backup, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=0.3))
    with _closed_standby(primary, base_backup) as port, primary.alias(PORT=str(port)):
        run = reap("--database", "own")
        assert run.exit_code == 5
        assert run.error.startswith("own: can't connect: ")
        assert "the database system is" in run.error
        assert "\n" not in run.error
