"""The report on real servers: what it sees, that its judge is the reaper's, and what it costs."""

from __future__ import annotations

import io
import json
import random
import shlex
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from conn_guard.sessions.look import Observer
from conn_guard.sessions.policy import Policy
from conn_guard.text import one_line
from tests.support import programs
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.reaping import reap

ROLES = {
    "app": "LOGIN",
    "billing": "LOGIN",
    "boss": "LOGIN SUPERUSER",
    "limited": "LOGIN CONNECTION LIMIT 4",
    "quiet": "LOGIN",
}
REPORTS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'conn_guard:report'"


@dataclass
class Told:
    """One run of the report: its exit code and what it said of each alias."""

    exit_code: int = 0
    error: str = ""
    stdout: str = ""
    stderr: str = ""
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def report(self) -> dict[str, Any]:
        """The report of the only alias."""
        (only,) = self.reports.values()
        return only

    def group(self, **fields: object) -> dict[str, Any]:
        """Return the only group with these *fields*."""
        (found,) = (
            each
            for each in self.report["groups"]
            if all(each[name] == value for name, value in fields.items())
        )
        return found

    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.report["meanings"]]


def report(*arguments: str, **options: Any) -> Told:
    """Run the command, with JSON unless *options* say otherwise, and return what it said."""
    told, stdout, stderr = Told(), io.StringIO(), io.StringIO()
    options = {"format": "json", **options}
    try:
        call_command("conn_report", *arguments, stdout=stdout, stderr=stderr, **options)
    except CommandError as error:
        told.exit_code, told.error = error.returncode, str(error)
    told.stdout, told.stderr = stdout.getvalue(), stderr.getvalue()
    if options["format"] == "json":
        for event in map(json.loads, told.stdout.splitlines()):
            if event["event"] == "error":
                told.errors.append(event)
            else:
                told.reports[event["alias"]] = event
    return told


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES) as server:
        server.ask("CREATE DATABASE other")
        server.ask("ALTER ROLE quiet SET track_activities = off")
        server.ask("CREATE TABLE stock (id int PRIMARY KEY, n int)")
        server.ask("INSERT INTO stock VALUES (1, 1)")
        server.ask("GRANT ALL ON stock TO app, billing")
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """Let a login be tried again for a moment, not for half a minute."""
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=0.2))


@pytest.fixture
def crowd(server):
    """Sessions of every kind on a server, all idle for longer than the threshold of rested()."""
    sessions = []
    for number in range(18):
        role = ["app", "app", "billing", "boss", "limited"][number % 5]
        name = ["shop:server", "shop:server:77:view", "psql", "shop:worker"][number % 4]
        database = "other" if number % 7 == 6 else "postgres"
        sessions.append(server.session(role, application_name=name, dbname=database))
    sessions[0].execute("SELECT pg_advisory_lock(1)")
    sessions[1].execute("LISTEN channel")
    sessions[4].execute("CREATE TEMP TABLE t (a int)")
    sessions[5].execute("BEGIN")
    sessions[5].execute("SELECT 1")
    sessions[8].execute("SET track_activities = off")
    server.rested(*sessions[:8], *sessions[9:])
    return sessions


OPTIONS = [
    ["--idle-for", "1h"],
    ["--idle-in-transaction-for", "0.1s"],
    ["--application-name", "shop:*"],
    ["--application-name", "shop:server"],
    ["--exclude-application-name", "shop:worker"],
    ["--user", "*"],
    ["--user", "billing"],
    ["--user", "boss"],
    ["--exclude-user", "billing"],
    ["--client", "127.0.0.0/8"],
    ["--client", "10.0.0.0/8"],
    ["--exclude-client", "127.0.0.1"],
    ["--any-database"],
    ["--keep", "1"],
    ["--keep", "3"],
]


@pytest.mark.usefixtures("crowd")
def test_the_report_would_end_what_the_dry_run_would_signal(server):
    choice = random.Random(11)
    for _ in range(60):
        chosen = choice.sample(OPTIONS, choice.randint(0, 4))
        if sum(each[0] == "--user" for each in chosen) > 1:
            continue
        arguments = [
            "--database",
            "own",
            "--idle-for",
            "0.1s",
            *(x for each in chosen for x in each),
        ]
        with server.alias(USER=choice.choice(["app", "boss", "billing"])):
            run = reap(*arguments, "--dry-run")
            # Each session of ours goes before the next look, which would count it.
            until(lambda: not server.reapers())
            told = report(*arguments)
            until(lambda: not server.reapers("report"))
        actions = Counter(each["action"] for each in run.sessions.values())
        assert told.report["would_end"] == actions["would_signal"], arguments
        groups = told.report["groups"]
        assert sum(each["would_end"] for each in groups) == told.report["would_end"]
        assert sum(each["sessions"] for each in groups) == told.report["sessions"]
        if run.exit_code:  # blind
            assert run.exit_code == 4
            assert "refuses" in told.kinds()
            continue
        spared = {key: n for key, n in run.summary["spared"].items() if key != "self"}
        assert told.report["spared"] == spared, arguments
        assert told.report["slots_used"] == run.summary["slots_used"]
        assert told.report["slots_total"] == run.summary["slots_total"]


def test_the_reports_session_is_a_slot_and_nothing_else(server):
    session = server.session("boss")
    arguments = server.rested(session)
    with (
        server.alias(USER="boss"),
        Observer("own", Policy(idle_for=timedelta(seconds=1))) as observer,
    ):
        observer.look()
        ((pid,),) = server.ask(REPORTS)
        told = report(*arguments)
        assert not any(
            each["application"].startswith("conn_guard") for each in told.report["groups"]
        )
        assert told.report["slots_used"] == told.report["sessions"] + 2
        until(lambda: server.ask(REPORTS) == [(pid,)])
        run = reap(*arguments, "--user", "*", "--any-database")
        assert pid not in run.sessions
        assert run.fate(session) == ("signalled", None)
        assert "reaper" not in run.summary["spared"]
        assert server.ask(REPORTS) == [(pid,)]
    until(lambda: not server.ask(REPORTS))


def test_a_reaper_is_spared_and_shown(server):
    reaper = server.session("app", application_name="conn_guard:idle_reaper")
    with server.alias():
        told = report(*server.rested(reaper))
    assert told.group(application="conn_guard:idle_reaper")["spared"] == {"reaper": 1}


def test_the_last_statements_show_their_shape_and_no_more(server):
    selects = [server.session() for _ in range(3)]
    for number, each in enumerate(selects):
        each.execute(f"SELECT id FROM stock WHERE id = {number} AND 'secret' <> 'x' /* secret */")
    cut_off = server.session(application_name="long")
    columns = ", ".join('"stock"."id"' for _ in range(200))
    cut_off.execute(f'SELECT {columns} FROM "stock"')
    server.session("quiet", application_name="quiet").execute("SELECT 1")
    with server.alias(USER="boss"):
        told = report(*server.rested(*selects, cut_off), "--user", "quiet", "--user", "app")
        by_last = report(*server.rested(*selects), "--by", "last", "--by", "client")
    assert told.group(application="shop")["last"] == "SELECT stock"
    assert told.group(application="long")["last"] == "SELECT stock"
    assert told.group(application="quiet")["last"] is None
    assert told.group(application="quiet")["spared"] == {"track_activities_off": 1}
    assert "secret" not in told.stdout
    assert by_last.group(last="SELECT stock", client="127.0.0.1")["sessions"] == 4


@pytest.fixture
def databases(server):
    """Databases with encodings of their own, beside one in UTF-8."""
    names = {"latin": "LATIN1", "win": "WIN1252", "euc": "EUC_JP"}
    for name, encoding in names.items():
        server.ask(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    yield
    server.clean()
    for name in names:
        server.ask(f"DROP DATABASE {name}")


@pytest.mark.usefixtures("databases")
@pytest.mark.parametrize("database", ["postgres", "latin", "win", "euc"])
def test_statements_in_other_encodings_are_judged_and_have_a_shape(server, database):
    statements = {
        "shape": "SELECT '\u00e1\u00e9' FROM pg_class -- \\ \u00e9 listen",
        "listener": "-- \u00e9\nLISTEN \u00e1",
        "relation": 'SELECT 1 FROM pg_class AS "\u00c1"',
    }
    sessions = [
        server.session(dbname=name, application_name=f"{name} {kind}", client_encoding=encoding)
        for name, encoding in (("postgres", "UTF8"), ("latin", "LATIN1"))
        for kind in statements
    ]
    for each in sessions:
        each.execute(statements[each.application_name.split()[1]])
    with server.alias(NAME=database):
        arguments = (*server.rested(*sessions), "--any-database")
        told, run = report(*arguments), reap(*arguments, "--dry-run")
    assert (told.exit_code, run.exit_code) == (0, 0)
    for each in sessions:
        is_listener = "listener" in each.application_name
        shown = told.group(application=each.application_name)
        assert shown["last"] == ("LISTEN" if is_listener else "SELECT pg_class")
        assert shown["spared"] == ({"listen": 1} if is_listener else {})
        assert run.fate(each) == (("spared", "listen") if is_listener else ("would_signal", None))


@pytest.mark.usefixtures("databases")
def test_a_relation_is_named_in_the_encoding_of_its_database(server):
    session = server.session(dbname="latin", client_encoding="LATIN1", application_name="named")
    session.execute('CREATE TEMP TABLE "Gr\u00f6\u00dfe" (n int)')
    session.execute('SELECT n FROM "Gr\u00f6\u00dfe"')
    with server.alias():
        told = report(*server.rested(session), "--any-database")
    assert told.group(application="named")["last"] == 'SELECT "Gr\u00f6\u00dfe"'


def test_a_server_that_does_not_tell_who_waits_is_reported_all_the_same(server, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.look.BLOCKED", "SELECT 1 / 0")
    with server.alias():
        assert report("--database", "own").exit_code == 0


def test_a_session_that_is_lost_is_told_and_the_next_look_logs_in_again(server):
    with server.alias(), Observer("own", Policy(idle_for=timedelta(minutes=10))) as observer:
        assert observer.look().failure is None
        server.ask(f"SELECT pg_terminate_backend(pid) FROM ({REPORTS}) AS r")
        until(lambda: not server.ask(REPORTS))
        lost = observer.look()
        assert lost.exit_code == 5
        assert lost.failure.startswith("own: the report's own session ended: ")
        assert "\n" not in one_line(lost.failure)
        assert observer.look().failure is None


def test_an_alias_of_another_role_gets_in_where_the_applications_may_not(server, impatient):
    sessions = [server.session("limited") for _ in range(4)]
    arguments = server.rested(*sessions)
    with server.alias(USER="limited"), server.alias("door", USER="boss"):
        told = report(*arguments)
        assert told.exit_code == 0
        assert "logged in by" in told.stderr
        assert told.report["would_end"] == 4
        mirrors = report("--database", "own", "--database", "door")
        assert list(mirrors.reports) == ["own", "door"]


def test_an_unexpected_error_is_one_line_and_exit_code_1(server, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ValueError("no\nluck")

    with server.alias():
        monkeypatch.setattr("conn_guard.sessions.look.shape", fail)
        server.session()
        told = report("--database", "own")
        assert (told.exit_code, told.error) == (1, "own: unexpected ValueError: no luck")
        monkeypatch.undo()
        monkeypatch.setattr("conn_guard.management.commands.conn_report.render_html", fail)
        told = report("--database", "own", format="html")
        assert (told.exit_code, told.error) == (1, "Unexpected ValueError: no luck")


def test_a_file_that_can_not_be_moved_leaves_nothing_behind(server, monkeypatch, tmp_path):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with server.alias():
        told = report("--database", "own", "--output", str(tmp_path / "report"))
    assert told.exit_code == 1
    assert told.error == "The report can't be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_earlier_text(server, impatient, tmp_path):
    file = tmp_path / "report"
    file.write_text("old")
    with server.alias(PORT=programs.free_port()):
        assert report("--database", "own", "--output", str(file), format="text").exit_code == 5
    assert file.read_text() == "old"


def test_a_stamped_name_is_grouped_by_process_and_view(server):
    for view in ("tasks", "assets"):
        server.session(application_name=f"shop:4711:{view}")
    with server.alias():
        told = report("--database", "own", "--by", "process", "--by", "view")
    assert told.group(process="4711", view="assets")["sessions"] == 1
    assert told.group(process="4711", view="tasks")["sessions"] == 1


def test_a_blind_role_gets_its_report_and_the_grant(server):
    server.session("billing")
    server.session("app")
    with server.alias():
        told = report("--database", "own")
        assert told.exit_code == 0
        assert told.report["hidden"] == 2  # billing's, and the observer's
        assert not told.report["slots_exact"]
        (hidden,) = (each for each in told.report["meanings"] if each["kind"] == "hidden")
        assert hidden["command"] == "GRANT pg_read_all_stats TO app;"
        blind = report("--database", "own", "--user", "*")
        (refuses,) = (each for each in blind.report["meanings"] if each["kind"] == "refuses")
        assert refuses["command"] == "GRANT pg_read_all_stats, pg_signal_backend TO app;"
        assert blind.report["would_end"] == 0
        server.ask(hidden["command"])
        try:
            assert report("--database", "own").report["hidden"] == 0
        finally:
            server.ask("REVOKE pg_read_all_stats FROM app")


@pytest.mark.parametrize("attributes", ["LOGIN NOINHERIT"])
def test_the_grant_of_a_role_that_inherits_nothing_helps(server, attributes):
    server.session("billing")
    server.ask(f"CREATE ROLE loner {attributes}")
    try:
        with server.alias(USER="loner"):
            (hidden,) = (
                each
                for each in report("--database", "own").report["meanings"]
                if each["kind"] == "hidden"
            )
            for statement in filter(None, hidden["command"].split(";")):
                server.ask(statement)
            assert report("--database", "own").report["hidden"] == 0
    finally:
        server.ask("DROP ROLE loner")


@contextmanager
def blocked(server, holder) -> Iterator[Any]:
    """Let a session of billing wait for the row that *holder* has changed."""
    waiting = server.session("billing", application_name="billing")
    change = "UPDATE stock SET n = 2 WHERE id = 1"
    thread = threading.Thread(target=waiting.execute, args=(change,))
    thread.start()
    try:
        is_waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s"
        until(lambda: server.ask(is_waiting, [waiting.pid]))
        yield waiting
    finally:
        holder.execute("ROLLBACK")
        thread.join(timeout=10)


def test_a_transaction_that_blocks_is_told_with_its_victims(server, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.meaning.HELD_FOR", timedelta(0))
    holder = server.session(application_name="shop:worker")
    holder.execute("BEGIN")
    holder.execute("UPDATE stock SET n = 1 WHERE id = 1")
    with blocked(server, holder), server.alias(USER="boss"):
        told = report("--database", "own")
    (blocks,) = (each for each in told.report["meanings"] if each["kind"] == "blocks")
    assert f"Pid {holder.pid} blocks 1 session of billing" in blocks["message"]
    assert "--user app" in blocks["command"]


def test_a_leak_is_told_and_its_command_ends_it(server, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.meaning.QUIET_FOR", timedelta(0))
    sessions = [server.session(application_name="leaky app") for _ in range(6)]
    for each in sessions:
        each.execute("SELECT n FROM stock")
    arguments = server.rested(*sessions)
    with server.alias():
        told = report(*arguments)
        (leak,) = (each for each in told.report["meanings"] if each["kind"] == "leak")
        assert "each ended with SELECT stock" in leak["message"]
        words = shlex.split(leak["command"])
        assert words[:3] == ["python", "manage.py", "idle_reaper"]
        words[words.index("--idle-for") + 1] = "0.1s"
        run = reap(*words[3:])
    assert {run.fate(each) for each in sessions} == {("would_signal", None)}


def test_the_unused_sessions_of_a_pool_are_no_leak(server, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.meaning.QUIET_FOR", timedelta(0))
    sessions = [server.session(application_name="pool") for _ in range(8)]
    for each in sessions:
        each.execute("SELECT set_config('TimeZone', 'UTC', false)")  # as Django does after a login
    with server.alias():
        told = report(*server.rested(*sessions))
    assert told.group(application="pool")["last"] == "SELECT"
    assert "leak" not in told.kinds()


def test_the_settings_are_those_at_login_and_the_findings_those_of_the_checks(server):
    server.ask("ALTER ROLE app SET idle_session_timeout = '7s'")
    try:
        with server.alias(CONN_MAX_AGE=600):
            told = report("--database", "own")
            stderr = io.StringIO()
            call_command("check", deploy=True, databases=["own"], stderr=stderr, stdout=stderr)
    finally:
        server.ask("ALTER ROLE app RESET idle_session_timeout")
    assert told.report["settings"]["idle_session_timeout"] == "7000ms"
    assert told.report["settings"]["max_connections"] == "40"
    found = {each["id"]: each for each in told.report["findings"]}
    assert {"W301", "I305"} <= set(found)
    for each in found.values():
        assert each["message"] in stderr.getvalue()
        assert each["hint"] in stderr.getvalue()
    assert {f"conn_guard.{name}" in stderr.getvalue() for name in found} == {True}


def test_a_silenced_check_is_no_finding(server, settings):
    settings.SILENCED_SYSTEM_CHECKS = ["conn_guard.I305"]
    with server.alias():
        assert report("--database", "own").report["findings"] == []


def test_the_nearest_limit_is_named_and_may_fail_the_run(server):
    sessions = [server.session("limited") for _ in range(3)]
    server.rested(*sessions)
    with server.alias(USER="limited"):
        told = report("--database", "own", "--fail-above", "90")
        assert told.report["slots_limit"] == "role"
        assert (told.report["slots_used"], told.report["slots_total"]) == (4, 4)
        assert (told.exit_code, told.report["exit"]) == (3, 3)
        assert told.error == "own: ≤4 of 4 slots are taken (≤100%), above --fail-above 90."
        assert report("--database", "own", "--fail-above", "100%").exit_code == 0
    server.ask("ALTER DATABASE other CONNECTION LIMIT 1")
    with server.alias(NAME="other"):
        told = report("--database", "own", "--fail-above", "90")
    assert told.report["slots_limit"] == "database"
    assert told.error == "own: ≤1 of 1 slots is taken (≤100%), above --fail-above 90."
    assert "slots_full" in told.kinds()
    server.ask("ALTER DATABASE other CONNECTION LIMIT -1")


def test_growth_is_told_between_two_looks(server):
    opened = threading.Timer(0.2, lambda: [server.session() for _ in range(3)])
    with server.alias():
        opened.start()
        told = report("--database", "own", "--over", "1s")
        opened.join()
    (growth,) = (each for each in told.report["meanings"] if each["kind"] == "growth")
    assert "grew by 3 in 1" in growth["message"]
    assert "slots are taken in" in growth["message"]


def test_each_place_is_reported_once_and_an_alias_that_fails_stops_no_other(server, impatient):
    with server.alias(), server.alias("mirror"), server.alias("gone", PORT=programs.free_port()):
        told = report("--database", "own", "--database", "mirror", "--database", "gone")
    assert list(told.reports) == ["own"]
    assert "mirror leads to the same place as own: reported once" in told.stderr
    assert [(each["alias"], each["exit"]) for each in told.errors] == [("gone", 5)]
    assert told.exit_code == 5
    assert told.error.startswith("gone: can't connect: ")


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_every_alias_is_reported_and_others_are_skipped(server):
    told = report("--all-databases")
    assert set(told.reports) == {"default", "other"}
    assert "lite is no PostgreSQL: skipped" in told.stderr


def test_a_wrong_password_is_one_line_without_it(impatient):
    from tools.local_postgres import LocalPostgres

    with LocalPostgres(auth="scram-sha-256") as started:
        settings = {**connections.settings["default"], "HOST": started.host, "OPTIONS": {}}
        settings |= {"PORT": str(started.port), "USER": "postgres", "PASSWORD": "hunter2"}
        settings |= {"NAME": "postgres", "ENGINE": "django.db.backends.postgresql"}
        connections.settings["locked"] = settings
        try:
            told = report("--database", "locked")
        finally:
            del connections["locked"]
            del connections.settings["locked"]
    assert told.exit_code == 5
    assert "\n" not in told.error
    assert "hunter2" not in told.error + told.stdout + told.stderr


def test_without_a_slot_the_report_tells_what_helps(server, impatient):
    for _ in range(3):
        server.session("limited")
    server.session("limited")
    with server.alias(USER="limited"):
        told = report("--database", "own")
    assert told.exit_code == 5
    assert "too many connections for role" in told.error
    assert "idle_reaper" in told.error


def test_a_pooler_is_refused_unless_it_is_declared(server, settings):
    address = {"HOST": server.server.host, "PORT": server.server.port, "USER": "app"}
    with (
        programs.pgbouncer({**address, "PASSWORD": ""}, "session") as pooler,
        server.alias(**pooler.settings),
    ):
        assert report("--database", "own").exit_code == 2
        settings.CONN_GUARD = {"POOLER": {"own": "session"}}
        assert report("--database", "own").exit_code == 0


def test_the_report_signals_nobody_and_takes_no_lock(server, crowd):
    pids = {each.pid for each in crowd}
    with (
        server.alias(USER="boss"),
        Observer("own", Policy(idle_for=timedelta(0), users=("*",))) as observer,
    ):
        snapshot = observer.look()
        assert snapshot.would_end > 0
        held = "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE"
        held += " a.application_name = 'conn_guard:report' AND l.locktype = 'advisory'"
        assert server.ask(held) == []
    alive = {pid for (pid,) in server.ask("SELECT pid FROM pg_stat_activity")}
    assert pids <= alive


def test_metrics_are_those_of_the_server_alone(server):
    server.session()
    with server.alias():
        told = report("--database", "own", format="prometheus")
    names = {line.split("{")[0] for line in told.stdout.splitlines() if not line.startswith("#")}
    assert names == {
        "conn_guard_server_sessions",
        "conn_guard_server_oldest_idle_seconds",
        "conn_guard_server_slots_usable",
        "conn_guard_server_slots_used",
        "conn_guard_server_sessions_hidden",
    }


@pytest.mark.parametrize("form", ["text", "json", "html", "prometheus"])
def test_a_file_is_written_whole_and_read_by_everybody(server, tmp_path, form):
    file = tmp_path / "report"
    file.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(file)
    with server.alias():
        told = report("--database", "own", "--output", str(link), "-v", "0", format=form)
    assert (told.stdout, told.stderr) == ("", "")
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o644
    assert "own" in file.read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "report"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--by", "colour"], "argument --by: invalid choice: 'colour'"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--fail-above", "101"], "--fail-above: '101' is not a percentage from 0 to 100."),
        (["--over", "0s"], "--over: 0s is not above zero."),
        (["--watch", "soon"], "--watch: 'soon' is not a duration: write 90s, 10m, 2h or 1d."),
        (["--over", "1s", "--watch"], "--over: --watch tells the growth by itself."),
        (["--format", "html", "--watch"], "--watch: name the file for html with --output."),
        (["--output", "/nowhere/x"], "--output: '/nowhere/x' can't be written: its folder has to"),
        (["--output", "/tmp"], "--output: '/tmp' can't be written"),
        (["--database", "lite"], "DATABASES['lite'] is no PostgreSQL"),
        (["--user", "*", "--user", "a"], "--user '*' means every role and stands alone."),
        (["--dry-run"], "unrecognized arguments: --dry-run"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, line):
    stdout = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("conn_report", *arguments, stdout=stdout, stderr=stdout)
    assert caught.value.returncode == 2
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_fields_and_settings_are_refused_from_python_too(settings):
    with pytest.raises(CommandError, match="--by: 'colour' is none of application, user,"):
        call_command("conn_report", by=["colour"])
    settings.CONN_GUARD = {"REAP_IDLE": 1}
    with pytest.raises(CommandError, match="REAP_IDLE") as caught:
        call_command("conn_report")
    assert caught.value.returncode == 2


def test_names_reach_the_terminal_escaped(server):
    session = server.session(application_name="x\x1b[31m\u202e\ny")
    with server.alias():
        told = report(*server.rested(session), format="text")
    assert "\x1b" not in told.stdout
    assert "\u202e" not in told.stdout


def test_the_options_that_choose_sessions_are_those_of_idle_reaper():
    def options(name):
        from django.core.management import load_command_class

        parser = load_command_class("conn_guard", name).create_parser("manage.py", name)
        return {
            option: (action.metavar, action.help, action.nargs, action.default)
            for action in parser._actions
            for option in action.option_strings
        }

    ours, reapers = options("conn_report"), options("idle_reaper")
    chosen = {each[0] for each in OPTIONS} | {"--database", "--all-databases"}
    assert {name: ours[name] for name in chosen} == {name: reapers[name] for name in chosen}
