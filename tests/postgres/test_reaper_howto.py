"""The reaper's how-to pages: their commands, SQL and files are run as they stand."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError

from tests.postgres.howto import HOW_TO, blocks, here, lines, statements
from tests.support.own_server import own_server
from tests.support.polling import until

PAGES = (
    "make-a-reaper-role",
    "no-slot-left",
    "run-the-reaper-from-cron",
    "run-the-reaper-from-rq-or-celery",
    "run-the-reaper-from-systemd",
    "run-the-reaper-in-kubernetes",
    "use-idle-session-timeout-instead",
)
LANGUAGES = {"sql", "sh", "crontab", "ini", "yaml", "python", "psql"}
LOCKED = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = 1668247143"
SETTINGS = """
import os
from tests.settings import *
DATABASES = {{"default": {{**ADDRESS, "HOST": "127.0.0.1", "PORT": "{port}", "NAME": "shop",
                           "USER": "shop", "PASSWORD": ""}}}}
{alias}
"""


@pytest.fixture(scope="module")
def server(django_db_blocker):
    roles = {"shop": "LOGIN"}
    with django_db_blocker.unblock(), own_server(roles=roles) as server:
        server.ask("CREATE DATABASE shop OWNER shop")
        for statement in statements(*blocks("make-a-reaper-role", "sql", "")):
            server.ask(statement)
        if server.major >= 16:
            for statement in statements(*blocks("make-a-reaper-role", "sql", "16")):
                server.ask(statement)
            server.forget()
            server.server.restart()
        yield server


@pytest.fixture
def shop(server, tmp_path, monkeypatch):
    """Return a function that runs a line of the shell in the project of the pages."""
    (alias,) = blocks("make-a-reaper-role", "python")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "settings.py").write_text(
        SETTINGS.format(port=server.server.port, alias=alias.text)
    )
    (tmp_path / "manage.py").write_text(
        "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'\nfrom"
        " django.core.management import"
        " execute_from_command_line\nexecute_from_command_line(sys.argv)\n"
    )
    (tmp_path / "textfile").mkdir()
    programs_folder = tmp_path / ".venv" / "bin"
    programs_folder.mkdir(parents=True)
    python = programs_folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    environ = {
        **os.environ,
        "PATH": f"{programs_folder}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "REAPER_PASSWORD": "change-me",
    }

    def run(line):
        return subprocess.run(
            ["/bin/sh", "-ec", here(line, tmp_path)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.folder, run.environ = tmp_path, environ
    yield run
    server.clean()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, block
        if block.note == "no":
            assert block.before.startswith("Not run by our tests"), block


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        file = HOW_TO / target if target else HOW_TO / f"{page}.md"
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings
        }, anchor


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_has_a_line_of_its_own(page):
    text = re.sub(
        r"```.*?```", "", (HOW_TO / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for line in text.splitlines():
        bare = re.sub(r"`[^`]*`|\([^)]*\)|\*\*.*?\*\*", "", line)
        assert not re.search(r"[a-z]\. [A-Z]", bare), line


@pytest.mark.parametrize(
    "page", ["make-a-reaper-role", "no-slot-left", "use-idle-session-timeout-instead"]
)
def test_the_commands_of_a_page_run_one_after_the_other(shop, page):
    # In one process, because starting Python and Django is what takes the time.
    words = [line.split() for line in lines(page)]
    assert {tuple(each[:2]) for each in words} == {("python", "manage.py")}
    assert {each[2] for each in words} <= {"conn_report", "idle_reaper"}
    run_all = f"""
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
from django.core.management import execute_from_command_line
for words in {words!r}:
    execute_from_command_line(words[1:])
    print("ran", *words)
"""
    (shop.folder / "run_all.py").write_text(run_all)
    done = shop("python run_all.py")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("ran ")] == [
        f"ran {line}" for line in lines(page)
    ]


def test_the_reapers_role_ends_the_applications_sessions_by_the_page(server, shop):
    session = server.session("shop", dbname="shop")
    server.rested(session)
    look, act = lines("make-a-reaper-role")
    assert f"would_signal  {session.pid}" in shop(f"{look} --idle-for 0.2s").stdout
    assert server.alive(session)
    assert f"signalled  {session.pid}" in shop(f"{act} --idle-for 0.2s").stdout


def test_a_member_of_the_applications_role_does_as_well(server, shop):
    make, grant = statements(*blocks("make-a-reaper-role", "sql", "member"))
    session = server.session("shop", dbname="shop")
    server.rested(session)
    server.ask(make.replace("reaper", "member"))
    server.ask(grant.replace("reaper", "member"))
    try:
        changes = {"NAME": "shop", "USER": "member"}
        with server.process(
            shop.folder, "--idle-for", "0.2s", "--user", "shop", "--format", "json", **changes
        ) as process:
            exit_code, events, _ = process.end()
        assert exit_code == 0
        assert {
            event["pid"]: event["action"] for event in events if event["event"] == "session"
        } == {session.pid: "signalled"}
    finally:
        server.ask("DROP ROLE member")


def test_crontab_lines_are_silent_and_leave_metrics(shop):
    for line in lines("run-the-reaper-from-cron"):
        assert shop(line).returncode == 0
    for line in lines("run-the-reaper-from-cron", "crontab"):
        *times, command = line.split(maxsplit=5)
        assert times == ["*/5", "*", "*", "*", "*"]
        assert "%" not in command, "cron makes a new line of it"
        done = shop(command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    metrics = (shop.folder / "textfile" / "idle_reaper.prom").read_text()
    assert "conn_guard_reaper_last_success_timestamp_seconds" in metrics


def test_cron_mails_one_line_where_something_is_wrong(server, shop):
    server.ask("REVOKE pg_read_all_stats FROM reaper")
    session = server.session("shop", dbname="shop")
    try:
        command = lines("run-the-reaper-from-cron", "crontab")[1].split(maxsplit=5)[-1]
        done = shop(command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
        assert "GRANT pg_read_all_stats TO reaper;" in done.stderr
    finally:
        server.ask("GRANT pg_read_all_stats TO reaper")
        session.close()


# systemd and Kubernetes


def units():
    found = blocks("run-the-reaper-from-systemd", "ini")
    return {block.text.splitlines()[0].rpartition("/")[2]: block.text for block in found}


@pytest.mark.parametrize(
    "name", ["idle-reaper.service", "idle-reaper-once.service", "idle-reaper-once.timer"]
)
def test_units_are_what_systemd_takes(shop, name, tmp_path):
    folder = tmp_path / "units"
    folder.mkdir()
    for each, text in units().items():
        # This machine lacks the user.
        (folder / each).write_text(here(text, shop.folder).replace("User=shop", "User=root"))
    parsed = configparser.ConfigParser(interpolation=None, delimiters="=")
    parsed.optionxform = str
    parsed.read_string(units()[name])
    assert parsed["Unit"]["Description"]
    if program := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [program, "verify", str(folder / name)], capture_output=True, text=True, timeout=60
        )
        told = [line for line in (done.stdout + done.stderr).splitlines() if "idle-reaper" in line]
        assert (done.returncode, told) == (0, [])


def test_the_services_run_what_they_start(server, shop):
    once, stays = (
        re.search(r"^ExecStart=(.*)$", units()[name], re.MULTILINE)[1]
        for name in ("idle-reaper-once.service", "idle-reaper.service")
    )
    assert shop(once).returncode == 0
    run_until_it_works(server, shop, here(stays, shop.folder).split())


def run_until_it_works(server, shop, command):
    """Run a repeating command until it has its lock, and return its memory in bytes."""
    process = subprocess.Popen(
        command, cwd=shop.folder, env=shop.environ, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: server.ask(LOCKED), timeout=30)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def manifests():
    yaml = pytest.importorskip("yaml")
    return [yaml.safe_load(block.text) for block in blocks("run-the-reaper-in-kubernetes", "yaml")]


def test_manifests_ask_for_no_more_than_they_need():
    job, deployment = manifests()
    assert (job["apiVersion"], job["kind"], job["spec"]["concurrencyPolicy"]) == (
        "batch/v1",
        "CronJob",
        "Forbid",
    )
    assert (deployment["apiVersion"], deployment["kind"], deployment["spec"]["replicas"]) == (
        "apps/v1",
        "Deployment",
        1,
    )
    job_spec = job["spec"]["jobTemplate"]["spec"]
    assert (job_spec["backoffLimit"], job_spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert job_spec["activeDeadlineSeconds"] < 300
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for pod in (job_spec["template"]["spec"], deployment["spec"]["template"]["spec"]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) == {"memory"}


def test_the_pods_run_what_they_start(server, shop):
    job, deployment = manifests()
    (once,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert shop(" ".join(once["command"])).returncode == 0
    (stays,) = deployment["spec"]["template"]["spec"]["containers"]
    requested = stays["resources"]["requests"]["memory"]
    assert (
        run_until_it_works(server, shop, stays["command"])
        < int(requested.removesuffix("Mi")) * 2**20
    )


# RQ and Celery


@pytest.fixture
def jobs(shop, monkeypatch):
    """The modules of the page, in the project's package; return the folder."""
    for block in blocks("run-the-reaper-from-rq-or-celery", "python"):
        name = block.text.splitlines()[0].removeprefix("# ")
        (shop.folder / name).write_text(block.text + "\n")
    return shop


def test_the_job_ends_sessions_and_fails_as_a_job_should(server, jobs):
    session = server.session("shop", dbname="shop")
    server.rested(session)
    call = (
        "import django; django.setup(); from shop.jobs import reap_idle_sessions;"
        " reap_idle_sessions()"
    )
    configure = "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'; "
    settings = jobs.folder / "shop" / "settings.py"
    settings.write_text(settings.read_text() + "\nCONN_GUARD = {'REAP_IDLE_FOR': 0.2}\n")
    done = jobs(f'python -c "{configure}{call}"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not server.alive(session)
    settings.write_text(settings.read_text() + "\nCONN_GUARD = {'REAP_IDLE_FOR': 'ten'}\n")
    done = jobs(f'python -c "{configure}{call}"')
    assert done.returncode == 1
    assert CommandError.__name__ in done.stderr


def test_celery_knows_the_task_and_when(jobs):
    pytest.importorskip("celery")
    ask = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'; import django;"
        " django.setup(); from shop.celery import app; app.loader.import_default_modules();"
        " app.finalize(); (entry,) = app.conf.beat_schedule.values();"
        " print(app.tasks[entry['task']].apply().state, entry['schedule'])"
    )
    done = jobs(f'python -c "{ask}"')
    assert (done.stdout, done.returncode) == ("SUCCESS 300.0\n", 0), done.stderr


def test_rq_knows_the_job_and_when(jobs):
    pytest.importorskip("rq.cron")
    (command,) = lines("run-the-reaper-from-rq-or-celery", note="rq")
    module = command.split()[-1]
    ask = (
        "from unittest.mock import Mock; from rq.cron import CronScheduler; scheduler ="
        f" CronScheduler(connection=Mock()); scheduler.load_config_from_file('{module}'); (job,) ="
        " scheduler.get_jobs(); print(job.func.__name__, job.queue_name, job.interval)"
    )
    done = jobs(f'python -c "{ask}"')
    assert done.stdout.splitlines()[-1:] == ["reap_idle_sessions default 300"], done.stderr


# SQL


def test_the_superusers_statement_ends_idle_sessions_alone(server):
    psql = server.server.bin / "psql"
    if not psql.exists():
        pytest.skip("these binaries come without psql")
    (block,) = blocks("no-slot-left", "psql")
    resting, busy, elsewhere = (
        server.session("shop", dbname="shop"),
        server.session("shop", dbname="shop"),
        server.session("shop"),
    )
    busy.execute("BEGIN")
    server.rested(resting, elsewhere)
    script = block.text.replace("interval '1 minute'", "interval '0.1 s'")
    assert script != block.text
    address = server.server.url("shop")
    done = subprocess.run(
        [psql, "-X", address], input=script, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    assert re.search(rf"{resting.pid} \| t", done.stdout)
    until(lambda: not server.alive(resting))
    assert server.alive(busy)
    assert server.alive(elsewhere)
    server.clean()


def test_a_process_that_ps_shows_as_idle_ends_by_its_pid_alone(server):
    if shutil.which("ps") is None:
        pytest.skip("ps is not installed")
    (block,) = blocks("no-slot-left", "sh", "host")
    find, end = block.text.splitlines()
    idle, busy = server.session("shop", dbname="shop"), server.session("shop", dbname="shop")
    busy.execute("BEGIN")
    server.rested(idle)

    def found():
        done = subprocess.run(find, shell=True, capture_output=True, text=True, check=False)
        return {int(line.split()[0]) for line in done.stdout.splitlines()}

    assert idle.pid in found()
    assert busy.pid not in found()
    subprocess.run(end.replace("4711", str(idle.pid)), shell=True, check=True)
    until(lambda: not server.alive(idle))
    assert server.alive(busy)
    server.clean()


def test_the_question_who_holds_the_slots_is_answered(server):
    session = server.session("shop", application_name="holder")
    (statement,) = statements(*blocks("no-slot-left", "sql"))
    assert [row[:4] for row in server.ask(statement) if row[1] == "holder"] == [
        ("shop", "holder", "idle", 1)
    ]
    session.close()


def test_the_servers_own_timeout_is_set_seen_and_reset(server, shop):
    page = "use-idle-session-timeout-instead"
    setting, resetting = blocks(page, "sql", "")
    advised = shop(lines(page)[0]).stdout.splitlines()
    assert advised[1] == "ALTER ROLE shop IN DATABASE shop SET idle_session_timeout = '600000ms';"
    for statement in statements(setting):
        server.ask(statement)
    ((question,),) = [statements(each) for each in blocks(page, "sql", "shop")]
    assert server.session("shop", dbname="shop").execute(question) == [("10min",)]
    for statement in statements(resetting):
        server.ask(statement)
    assert server.session("shop", dbname="shop").execute(question) == [("0",)]
