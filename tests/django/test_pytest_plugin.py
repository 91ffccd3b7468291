"""The pytest plugin in another project: inner runs of pytest on a real server."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import environ
import pytest

pytest_plugins = ["pytester"]

SITE = Path(__file__).with_name("plugin_site")
ROOT = SITE.parent.parent.parent
INI = """
[pytest]
DJANGO_SETTINGS_MODULE = settings
pythonpath = .
python_files = leaks.py clean.py test_*.py
filterwarnings = error
    ignore:.*BaseConnection.__del__:pytest.PytestUnraisableExceptionWarning
    ignore::ResourceWarning
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The name of the inner projects' test database; DROP … WITH (FORCE) ends sessions in it."""
    name = f"plugin_{uuid.uuid4().hex[:12]}"
    yield name
    from django.db.backends.postgresql.base import Database

    address = environ.Env().db_url("DATABASE_URL")
    names = {
        "dbname": "NAME",
        "host": "HOST",
        "port": "PORT",
        "user": "USER",
        "password": "PASSWORD",
    }
    connection = Database.connect(
        **{key: address[value] for key, value in names.items() if address[value]}
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{name}%"])
        for (each,) in cursor.fetchall():
            cursor.execute(f'DROP DATABASE "{each}" WITH (FORCE)')
    connection.close()


@pytest.fixture
def run(pytester, database, monkeypatch) -> Callable[..., pytest.RunResult]:
    """Return a function that runs pytest in a copy of the project."""
    shutil.copytree(
        SITE,
        pytester.path,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "__init__.py"),
    )
    pytester.makeini(INI)
    monkeypatch.setenv("PLUGIN_DATABASE", database)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    installed = any(each.name == "conn_guard" for each in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "conn_guard.pytest_plugin")
    return lambda *args: pytester.runpytest_subprocess(
        *plugin, "-p", "no:asyncio", "--reuse-db", "-rEfw", *args
    )


def names(result: pytest.RunResult, outcome: str) -> set[str]:
    """Return the tests that the short summary lists with *outcome*."""
    return set(re.findall(rf"^{outcome} \S+::(\w+)", result.stdout.str(), re.MULTILINE))


def named_in(file: str) -> set[str]:
    return set(re.findall(r"def (test_\w+)", (SITE / file).read_text()))


# Without these lines the plugin would wait for each leak, and the garbage collector might close
# some of them.
HASTY = """
import gc
import conn_guard.pytest_watch
conn_guard.pytest_watch.GRACE_S = 0.1
gc.disable()
"""


@pytest.fixture
def hasty(pytester) -> None:
    """Let the plugin wait only a moment: the tests' leaks are not about to be closed."""
    pytester.makeconftest(HASTY)


@pytest.mark.usefixtures("hasty")
def test_every_leak_fails_its_test_and_shows_where_it_was_opened(run):
    result = run("--conn-guard=error", "leaks.py")
    assert names(result, "ERROR") == named_in("leaks.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "* ERROR at teardown of test_a_thread_that_lives_on *",
            "The test left a connection open.",
            "'default', session *, opened in thread 'lives-on_0' by:",
            '  File "*opening.py", line *, in query',
            "    with connections[[]alias[]].cursor() as cursor:",
            (
                "HINT: Close it where it was opened: *conn_guard.closing_connections*See"
                " docs/how-to/test-for-leaks.md."
            ),
            "* ERROR at teardown of test_code_that_asgiref_takes_to_its_thread *",
            "*opened in thread *",
            '  File "*opening.py", line *, in query',
            "* ERROR at teardown of test_two *",
            "The test left 2 connections open.",
            "'default', *",
            "'lasting', *",
            "* ERROR at teardown of test_the_second_of_two *",
            "The test left a connection open.",
        ]
    )
    result.stdout.no_fnmatch_line('*File "*asgiref*')


@pytest.mark.parametrize(
    "engine", ["django.db.backends.postgresql", "conn_guard.engine.postgresql"]
)
def test_what_is_closed_lent_kept_on_purpose_or_gone_is_no_leak(run, monkeypatch, engine):
    monkeypatch.setenv("PLUGIN_ENGINE", engine)
    result = run("--conn-guard=error", "clean.py")
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] >= len(named_in("clean.py")) - 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "guard",
    [{"PLUGIN_APPS": "conn_guard"}, {"PLUGIN_ENGINE": "conn_guard.engine.postgresql"}],
    ids=["app", "engine"],
)
def test_what_conn_guard_closes_is_no_leak_and_a_thread_that_lives_on_is(run, monkeypatch, guard):
    for name, value in guard.items():
        monkeypatch.setenv(name, value)
    result = run("--conn-guard=error", "leaks.py", "-k", "lives_on or died or second")
    assert names(result, "ERROR") == {"test_a_thread_that_lives_on"}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("option", [(), ("--conn-guard=warn",)], ids=["off", "warn"])
def test_the_fixture_fails_the_test_that_asks_for_it_and_no_other(run, pytester, option):
    pytester.makepyfile(
        test_it="""
import pytest
from opening import in_thread, query

@pytest.mark.django_db(transaction=True)
def test_without_the_fixture():
    in_thread(query)

@pytest.mark.django_db(transaction=True)
def test_with_the_fixture(no_leaked_connections):
    in_thread(query)

@pytest.mark.django_db(transaction=True)
def test_with_the_fixture_by_name(request):
    request.getfixturevalue("no_leaked_connections")
    in_thread(query)

@pytest.mark.usefixtures("no_leaked_connections")
@pytest.mark.django_db(transaction=True)
class TestClass:
    def test_with_the_fixture_of_its_class(self):
        in_thread(query)

@pytest.fixture
def leaves():
    in_thread(query)

@pytest.mark.django_db(transaction=True)
def test_with_a_fixture_that_leaks(leaves, no_leaked_connections):
    pass
"""
    )
    result = run(*option, "-W", "default", "test_it.py")
    assert names(result, "ERROR") == {
        "test_with_the_fixture",
        "test_with_the_fixture_by_name",
        "test_with_the_fixture_of_its_class",
        "test_with_a_fixture_that_leaks",
    }
    warning = "*LeakedConnectionWarning: The test left a connection open."
    if option:
        result.stdout.fnmatch_lines([warning, '  *File "*opening.py", line *, in query'])
    else:
        result.stdout.no_fnmatch_line(warning)


@pytest.mark.usefixtures("hasty")
def test_under_xdist(run):
    result = run(
        "--conn-guard=error",
        "-n2",
        "leaks.py",
        "clean.py",
        "-k",
        "died or two or copy or the_fixture or live_server",
    )
    assert names(result, "ERROR") == {
        name for name in named_in("leaks.py") if re.search("died|two|copy", name)
    }


@pytest.mark.usefixtures("hasty")
def test_an_error_of_the_tests_own_teardown_is_not_hidden(run, pytester):
    pytester.makepyfile(
        test_it="""
import pytest
from opening import in_thread, query

@pytest.fixture
def fails():
    yield
    raise ValueError("on purpose")

@pytest.mark.django_db(transaction=True)
def test_fails(fails):
    in_thread(query)

@pytest.mark.django_db
def test_next():
    query()
"""
    )
    result = run("--conn-guard=error", "test_it.py")
    assert result.parseoutcomes() == {"passed": 2, "errors": 1}
    result.stdout.fnmatch_lines(["E * ValueError: on purpose"])


def test_the_guides_test_passes_and_its_settings_switch_the_plugin_on(run, pytester):
    guide = (ROOT / "docs" / "how-to" / "test-for-leaks.md").read_text()
    python = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (settings,) = re.findall(r"^```ini\n\[pytest\]\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    guilty = python[0].replace("closing_connections(User.objects.count)", "User.objects.count")
    pytester.makeini(INI + settings)
    pytester.makeconftest(python[2])
    pytester.makepyfile(
        test_it=python[0], test_leak=guilty.replace("(no_leaked_connections)", "()")
    )
    result = run("test_it.py", "test_leak.py")
    assert result.parseoutcomes() == {"passed": 2, "errors": 1}
    # The output in the guide is the real output.
    for line in re.findall(r"^```\n(ERROR.*?)^```", guide, re.MULTILINE | re.DOTALL)[
        0
    ].splitlines():
        if line.startswith(("The test", "HINT")):
            result.stdout.fnmatch_lines([line])


PROBES = """
import pytest

QUICKLY = {"requests": 10, "settle": 0.6}

def test_leak(live_server, leak_probe):
    leak_probe(live_server, "/leak/", **QUICKLY)

def test_leak_once(live_server, leak_probe):
    leak_probe(live_server, "/leak-once/", **QUICKLY)

def test_clean(live_server, leak_probe):
    (report,) = leak_probe(live_server, "/default/", **QUICKLY)
    assert report.requests.statuses == {200: 20}

def test_failing(live_server, leak_probe):
    leak_probe(live_server.url, "fail/", modes=["head"], **QUICKLY)

def test_nothing_to_see(live_server, leak_probe):
    leak_probe(live_server, "/nothing/", **QUICKLY)

@pytest.mark.django_db(databases=["file"])
def test_another_database(leak_probe):
    leak_probe("http://127.0.0.1:1", alias="file")

def test_no_server(transactional_db, leak_probe):
    leak_probe("http://127.0.0.1:1", settle=0.1)

def test_another_host(transactional_db, leak_probe):
    leak_probe("http://192.0.2.1")
"""


def test_a_url_that_leaks_fails_its_test_and_a_clean_one_passes(run, pytester):
    pytest.importorskip("aiohttp")
    guide = (ROOT / "docs" / "how-to" / "test-for-leaks.md").read_text()
    (example,) = re.findall(r"^def test_the_cart.*?(?=^```)", guide, re.MULTILINE | re.DOTALL)
    pytester.makepyfile(test_it=PROBES + example.replace("/cart/", "/default/"))
    result = run("test_it.py")
    assert result.parseoutcomes() == {"passed": 2, "failed": 7}
    result.stdout.fnmatch_lines(
        [
            "leak_probe needs PostgreSQL, and 'file' is none.",
            "http://localhost:*/leak/ (normal) leaks: *10 sessions*",
            "HINT: *conn_guard.closing_connections. The budget is 0 (--conn-guard-budget).",
            "http://localhost:*/leak-once/ (normal) leaks: * 1 session*",
            "http://localhost:*/fail/ (head) is unclear: of 20 requests 20 answered 500.",
            "HINT: Probe a URL that queries and answers 200. *pytest-plugin.*#leak_probe",
            "*/nothing/ (normal) is unclear: no session was *(name another with alias).",
            "http://127.0.0.1:1/ (normal) is unclear: no connection: *",
            "192.0.2.1 is not a loopback address. *add own_host=True*",
        ]
    )


def test_a_url_may_leave_as_many_sessions_as_the_budget_says(run, pytester, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("PLUGIN_APPS", "conn_guard")
    pytester.makepyfile(test_it=PROBES)
    result = run("--conn-guard-budget=1", "test_it.py", "-k", "leak")
    assert result.parseoutcomes() == {"passed": 2, "deselected": 6}
    assert run("--conn-guard-budget=-1").ret == pytest.ExitCode.USAGE_ERROR


def test_the_page_lists_the_options_of_a_probe_with_their_defaults():
    from conn_guard import pytest_probe

    page = (ROOT / "docs" / "reference" / "pytest-plugin.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*) \|$", page.partition("## leak_probe")[2], re.M)
    named = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    options = {each.name for each in fields(pytest_probe.Options)} - {"min_leaked", "min_share"}
    assert set(named) == options | {"alias"}
    for name, default in pytest_probe._DEFAULTS.items():
        assert named[name] == str(default)


def test_it_imports_pytest_alone_until_it_is_used(pytester, monkeypatch):
    pytester.makepyfile("""
        import sys

        import conn_guard.pytest_watch

        def test_it(leak_probe):
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert not loaded & {"aiohttp", "django", "psycopg", "psycopg2"}
        """)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert (
        pytester.runpytest_subprocess("-p", "no:django", "-p", "no:asyncio").ret
        == pytest.ExitCode.OK
    )


def test_it_is_an_entry_point_of_pytest():
    written = re.search(
        r"^\[project\.entry-points\.pytest11\]\n(.*)$",
        (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE,
    )
    assert written is not None
    assert written[1] == 'conn_guard = "conn_guard.pytest_plugin"'
