"""The probe on real sessions: what it calls a leak, and what it says of bad input."""

from __future__ import annotations

import io
import json
import socket
import ssl
import subprocess
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from conn_guard.probe import Options, TargetError, Verdict, probe_urls
from tests.support.programs import free_port
from tests.support.web_server import WebServer, web_server

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.django_db(transaction=True)

FEW_SETTLE = timedelta(seconds=0.4)
FEW = {"requests": 12, "concurrency": 3, "settle": "0.4s"}


@dataclass
class Run:
    """One run of the command with JSON lines."""

    exit_code: int = 0
    error: str = ""
    stdout: str = ""
    stderr: str = ""
    urls: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def only(self) -> dict[str, Any]:
        (event,) = self.urls
        return event

    @property
    def said(self) -> str:
        return self.stdout + self.stderr + self.error


def probe(*urls: str, **options: object) -> Run:
    """Run the command with few requests and return what it reported."""
    run, stdout, stderr = Run(), io.StringIO(), io.StringIO()
    options = {**FEW, "format": "json", **options}
    try:
        call_command("leak_probe", *urls, stdout=stdout, stderr=stderr, **options)
    except CommandError as error:
        run.exit_code, run.error = error.returncode, str(error)
    run.stdout, run.stderr = stdout.getvalue(), stderr.getvalue()
    assert "\n" not in run.error
    if options["format"] == "json":
        for line in run.stdout.splitlines():
            event = json.loads(line)
            if event["event"] == "url":
                run.urls.append(event)
            else:
                run.summary = event
    return run


@pytest.fixture
def open_session(session_factory):
    """Return a function that opens a session whose last statement is SELECT pg_class."""

    def opened(**parameters):
        session = session_factory(**parameters)
        session.execute("SELECT relname FROM pg_class LIMIT 1")
        return session

    return opened


@pytest.fixture
def site(open_session, application_name) -> Any:
    """A server with a view for each way to treat sessions, and for each way to misbehave."""
    pool: deque[Any] = deque()
    lock = threading.Lock()
    hangs = threading.Event()

    def leaks(request, **parameters):
        open_session(**parameters)
        request.answer()

    def clean(request):
        open_session().close()
        request.answer()

    def keeps(request):
        with lock:
            session = pool.pop() if pool else open_session()
        session.execute("SELECT relname FROM pg_class LIMIT 1")
        with lock:
            pool.append(session)
        request.answer()

    def fails_after(view):
        def failing(request):
            open_session() if view == "leaks" else open_session().close()
            request.answer(500)

        return failing

    def in_transaction(request):
        session = open_session()
        session.execute("BEGIN")
        request.answer()

    def closes(request):
        request.connection.shutdown(socket.SHUT_RDWR)

    def ends_early(request):
        open_session().close()
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.connection.shutdown(socket.SHUT_RDWR)

    views = {
        "/leaks": leaks,
        "/names": lambda request: leaks(
            request, application_name=f"{application_name}:4711:shop.views.cart"
        ),
        "/clean": clean,
        "/keeps": keeps,
        "/silent": lambda request: request.answer(),
        "/in-transaction": in_transaction,
        "/fails": fails_after("clean"),
        "/fails-and-leaks": fails_after("leaks"),
        "/hangs": lambda request: hangs.wait(),
        "/closes": closes,
        "/ends-early": ends_early,
        "/login": lambda request: request.answer(302, Location="/accounts/login/?next=/login"),
        "/away": lambda request: request.answer(
            302, Location="http://user:hidden@example.com/?token=hidden&page=1"
        ),
        "/forbidden": lambda request: request.answer(403),
    }
    with web_server(views) as server:
        yield server
        hangs.set()


@pytest.fixture
def own(application_name) -> dict[str, object]:
    """The option by which the probe looks at this test's sessions alone."""
    return {"application_name": [f"{application_name}*"]}


def test_a_url_whose_sessions_nothing_uses_again_leaks(site: WebServer, own, application_name):
    run = probe(site.url("/leaks"), **own)
    assert (run.exit_code, run.summary["leaks"], run.summary["exit"]) == (3, 1, 3)
    event = run.only
    assert event["verdict"] == "leaks"
    assert (event["url"], event["mode"]) == (site.url("/leaks"), "normal")
    assert (event["requests"], event["statuses"], event["errors"]) == (24, {"200": 24}, 0)
    assert (event["before"], event["left"], event["leaked"]) == (0, 24, 12)
    assert (event["peak"], event["reused"], event["leaked_in_transaction"]) == (24, 0, 0)
    assert event["application_names"] == [application_name]
    assert event["last"] == ["SELECT pg_class"]
    assert event["slots_total"] > 0
    assert event["why"] == (
        f"the first 12 requests left 12 sessions of {application_name}, and the next 12 used none"
        " of them"
    )
    assert run.error.startswith(f"Leaks: 1 of 1. {site.url('/leaks')} (normal) leaks: ")


def test_a_url_that_closes_its_sessions_is_clean(site: WebServer, own):
    run = probe(site.url("/clean"), **own)
    assert (run.exit_code, run.error) == (0, "")
    assert (run.only["verdict"], run.only["left"], run.only["leaked"]) == ("clean", 0, 0)
    assert run.only["peak"] > 0


def test_a_pool_keeps_its_sessions_and_is_no_leak(site: WebServer, own):
    run = probe(site.url("/keeps"), **own)
    assert (run.exit_code, run.only["verdict"], run.only["leaked"]) == (0, "keeps", 0)
    assert 0 < run.only["reused"] <= run.only["left"]


def test_sessions_left_in_a_transaction_are_counted_apart(site: WebServer, own):
    run = probe(site.url("/in-transaction"), **own)
    assert (run.only["verdict"], run.only["leaked_in_transaction"]) == ("leaks", 12)


def test_the_engines_stamp_names_the_view_that_leaks(site: WebServer, own, application_name):
    run = probe(site.url("/names"), **own, format="text")
    assert "; opened by shop.views.cart; last statement SELECT pg_class." in run.stdout
    event = probe(site.url("/names"), **own).only
    assert (event["views"], event["application_names"]) == (["shop.views.cart"], [application_name])


def test_each_url_has_a_verdict_of_its_own(site: WebServer, own):
    run = probe(*map(site.url, ("/silent", "/leaks", "/clean")), **own)
    assert [each["verdict"] for each in run.urls] == ["clean", "leaks", "clean"]
    assert run.urls[2]["before"] == 24
    assert (run.exit_code, run.summary["leaks"], run.summary["clean"]) == (3, 1, 2)


def test_fewer_sessions_than_the_threshold_are_no_leak(site: WebServer, own):
    run = probe(site.url("/leaks"), **own, min_leaked=13)
    assert (run.exit_code, run.only["verdict"], run.only["leaked"]) == (0, "clean", 12)
    assert run.only["why"] == "24 sessions are left, fewer than a leak"


def test_the_table_has_a_row_for_each_url_and_says_what_to_install(site: WebServer, own):
    run = probe(*map(site.url, ("/leaks", "/clean")), **own, format="text")
    header, leaks, clean, empty, sentence, cure = run.stdout.splitlines()
    columns = ["URL", "MODE", "REQUESTS", "ERRORS", "PEAK", "LEFT", "LEAKED", "LAST", "VERDICT"]
    assert header.split() == columns
    assert leaks.split()[-4:] == ["12", "SELECT", "pg_class", "leaks"]
    assert (clean.split()[-1], empty) == ("clean", "")
    assert sentence.startswith(f"{site.url('/leaks')} (normal) leaks: ")
    # The settings of the tests have app and middleware.
    assert cure == "Set ENGINE = 'conn_guard.engine.postgresql' in DATABASES['default']."


def test_the_sessions_of_probes_are_named_and_count_nowhere(site: WebServer, ask, open_session):
    name = "conn_guard:leak_probe"
    names = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    seen = set()

    def looks(request):
        seen.update(ask(names, [name]))
        open_session().close()
        request.answer()

    other = open_session(application_name=name)
    site.views["/looks"] = looks
    run = probe(site.url("/looks"), concurrency=1, requests=6)
    assert len(seen) == 2
    assert (other.pid,) in seen
    assert name not in run.only["application_names"]


@pytest.mark.parametrize(
    ("mode", "asked"), [("disconnect", "GET"), ("head", "HEAD"), ("slow", "GET")]
)
def test_each_mode_finds_the_leak(site: WebServer, own, mode, asked):
    run = probe(site.url("/leaks"), **own, mode=[mode])
    assert (run.only["verdict"], run.only["mode"], run.only["requests"]) == ("leaks", mode, 24)
    assert site.asked == {(asked, "/leaks"): 24}


def test_a_slow_client_takes_64_kib_a_second(site: WebServer, own):
    sent = []

    def streams(request):
        written = 0
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 8192)
                written += 8192
        except OSError:
            sent.append(written)

    site.views["/streams"] = streams
    run = probe(site.url("/streams"), **own, mode=["slow"], requests=1, concurrency=1, timeout="2s")
    assert (run.only["statuses"], run.only["errors"]) == ({"200": 2}, 0)
    # The sockets of both sides hold some megabytes; a client that reads on takes hundreds.
    assert all(each < 16_000_000 for each in sent)


def test_headers_cookies_and_a_body_reach_the_server_and_no_output(site: WebServer, own, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"name=value")
    site.views["/echo?token=secret"] = lambda request: request.answer()
    run = probe(
        site.url("/echo?token=secret"),
        **own,
        header=["Authorization: Token secret"],
        cookie=["sessionid=secret", "other=secret2"],
        data=str(body),
    )
    assert "secret" not in run.said
    assert site.asked == {("POST", "/echo?token=secret"): 24}
    assert set(site.bodies) == {b"name=value"}
    head = site.heads[0]
    assert head["Authorization"] == "Token secret"
    assert head["Cookie"] == "sessionid=secret; other=secret2"


def test_headers_of_one_name_are_joined_and_win_over_the_user_of_the_url(site: WebServer, own):
    site.views["/echo"] = lambda request: request.answer()
    probe(
        site.url("/echo").replace("//", "//user:hidden@"),
        **own,
        header=["cookie: a=1", "X-Tag: 1", "x-tag: 2", "authorization: Token secret"],
        cookie=["b=2"],
    )
    head = site.heads[0]
    assert (head["cookie"], head["X-Tag"]) == ("a=1; b=2", "1, 2")
    assert [head[name] for name in head if name.lower() == "authorization"] == ["Token secret"]


def test_a_list_of_urls_is_probed(site: WebServer, own, tmp_path):
    file = tmp_path / "urls"
    file.write_text(f"# the pages\n{site.url('/clean')}\n\n{site.url('/clean')}\n")
    run = probe(list=str(file), **own)
    assert [each["url"] for each in run.urls] == [site.url("/clean")]


def test_the_pages_of_a_browsers_recording_are_probed(site: WebServer, own, tmp_path):
    asked = [
        ("GET", site.url("/clean")),
        ("POST", site.url("/clean")),
        ("GET", "https://cdn.example/x.js"),
    ]
    entries = [{"request": {"method": method, "url": url}} for method, url in asked]
    file = tmp_path / "afternoon.har"
    file.write_text(json.dumps({"log": {"entries": entries}}))
    run = probe(list=str(file), **own)
    assert [(each["method"], each["url"]) for each in run.urls] == [asked[0]]
    assert run.stderr.splitlines() == [
        "--urls: 1 entries of other hosts left out",
        "--urls: 1 entries by other methods than GET and HEAD left out; --yes sends them without"
        " their body",
    ]
    run = probe(list=str(file), yes=True, **own)
    assert [(each["method"], each["url"]) for each in run.urls] == asked[:2]


# Bad input


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/fails", "of 24 requests 24 answered 500"),
        ("/closes", "of 1 requests 1 closed"),
        ("/hangs", "of 1 requests 1 timed out"),
        ("/login", "24 of 24 requests were answered 302, a redirect to {}/accounts/login/?next="),
        (
            "/away",
            "24 of 24 requests were answered 302, a redirect to"
            " http://example.com/?token=***&page=1: ",
        ),
        ("/forbidden", "24 of 24 requests were answered 403: log in by --cookie or --header"),
    ],
)
def test_a_url_that_does_not_answer_as_it_should_is_unclear(site: WebServer, own, path, why):
    run = probe(site.url(path), **own, timeout="0.5s")
    assert (run.exit_code, run.only["verdict"], run.summary["exit"]) == (4, "unclear", 4)
    assert run.only["why"].startswith(why.format(site.url(""))), run.only["why"]
    assert run.error.startswith(f"Unclear: 1 of 1. {site.url(path)} (normal) is unclear: ")


def test_a_page_whose_right_answer_is_a_refusal_is_clean(site: WebServer, own):
    run = probe(site.url("/forbidden"), site.url("/clean"), **own, expect=[403])
    assert (run.exit_code, [each["verdict"] for each in run.urls]) == (0, ["clean", "clean"])


def test_a_url_that_fails_and_leaks_leaks(site: WebServer, own):
    run = probe(site.url("/fails-and-leaks"), **own)
    assert (run.exit_code, run.only["verdict"], run.only["errors"]) == (3, "leaks", 24)


def test_an_answer_whose_body_ends_early_is_an_answer(site: WebServer, own):
    run = probe(site.url("/ends-early"), **own)
    assert (run.exit_code, run.only["verdict"], run.only["statuses"]) == (0, "clean", {"200": 24})


def test_a_database_that_is_not_the_servers_is_never_clean(site: WebServer):
    run = probe(site.url("/clean"), database="other", application_name=["no-such-name"])
    assert (run.exit_code, run.only["verdict"]) == (4, "unclear")
    assert "name another with --database" in run.only["why"]


def test_work_of_others_is_no_proof_that_the_database_is_the_servers(
    site: WebServer, own, open_session
):
    beats, stop = open_session(), threading.Event()

    def beat():
        while not stop.wait(0.05):
            beats.execute("SELECT relname FROM pg_class LIMIT 1")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        run = probe(site.url("/silent"), **own)
    finally:
        stop.set()
        thread.join()
    assert (run.exit_code, run.only["verdict"]) == (4, "unclear")


@pytest.fixture
def traffic(site: WebServer):
    """Return a function that asks a path again and again while the test runs."""
    stop, threads = threading.Event(), []

    def ask_for(view):
        def run():
            while not stop.wait(0.03):
                view()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield ask_for
    stop.set()
    for each in threads:
        each.join()


def works_a_while(session):
    session.execute("SELECT pg_sleep(0.05)")
    session.close()


def test_other_traffic_never_makes_a_url_clean(site: WebServer, own, open_session, traffic):
    traffic(lambda: works_a_while(open_session()))
    run = probe(site.url("/clean"), **own)
    assert (run.exit_code, run.only["verdict"]) == (4, "unclear")
    assert "other traffic moved the numbers" in run.only["why"]


def test_a_leak_is_found_beside_other_traffic(site: WebServer, own, open_session, traffic):
    traffic(lambda: works_a_while(open_session()))
    run = probe(site.url("/leaks"), **own)
    assert (run.exit_code, run.only["verdict"]) == (3, "leaks")


def test_the_leak_of_other_traffic_is_not_the_urls(site: WebServer, own, open_session, traffic):
    traffic(open_session)
    run = probe(site.url("/clean"), **own)
    assert (run.exit_code, run.only["verdict"]) == (4, "unclear")


def test_nothing_that_listens_is_no_connection(own):
    url = f"http://127.0.0.1:{free_port()}/"
    run = probe(url, **own)
    assert (run.exit_code, run.only["verdict"], run.summary["exit"]) == (5, "unclear", 5)
    assert run.error.startswith(f"{url[:-1]}: no connection: ")
    assert run.error.endswith("Start the server there, or correct the address.")


def test_an_unknown_certificate_is_no_connection(site: WebServer, own, tmp_path, needs_program):
    make = "req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 2 -subj /CN=localhost"
    subprocess.run(
        [needs_program("openssl"), *make.split()], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    site.socket = context.wrap_socket(site.socket, server_side=True)
    site.scheme = "https"
    run = probe(site.url("/clean"), **own)
    assert (run.exit_code, run.only["verdict"]) == (5, "unclear")
    assert "its certificate isn't trusted: self" in run.error


@pytest.mark.parametrize(
    ("urls", "options", "message"),
    [
        ((), {}, "Name a URL such as http://127.0.0.1:8000/path/, or --urls FILE."),
        (("127.0.0.1:8000/x",), {}, "'127.0.0.1:8000/x' is no URL. Write http://127.0.0.1:8000/"),
        (("/x",), {}, "'/x' is no URL. Write http://127.0.0.1:8000/path/."),
        (("ftp://127.0.0.1/",), {}, "(a text that may hold a secret) is no URL."),
        (("http://127.0.0.1:x/",), {}, "(a text that may hold a secret) is no URL."),
        (("http://192.0.2.1/",), {}, "192.0.2.1 is not a loopback address. A probe is "),
        (("http://[2001:db8::1]/",), {}, "2001:db8::1 is not a loopback address."),
        (("http://0.0.0.0/",), {}, "0.0.0.0 is not a loopback address."),
        (("http://127.0.0.1/",), {"database": "none"}, "There is no alias 'none' in DATABASES."),
        (("http://127.0.0.1/",), {"database": "postgres://u:pw@h/d"}, "There is no alias of this"),
        (("http://127.0.0.1/",), {"database": "lite"}, "DATABASES['lite'] is no PostgreSQL"),
        (("http://127.0.0.1/",), {"header": ["secret"]}, "--header: write 'Name: value'"),
        (("http://127.0.0.1/",), {"header": ["A: secret\nB: c"]}, "--header: write 'Name: value'"),
        (("http://127.0.0.1/",), {"cookie": ["secret"]}, "--cookie: write NAME=VALUE"),
        (("http://127.0.0.1/",), {"cookie": ["a=secret;b=c"]}, "--cookie: write NAME=VALUE"),
        (("http://127.0.0.1/",), {"method": "DELETE"}, "--method DELETE may change data"),
        (("http://127.0.0.1/",), {"method": "GET", "data": __file__}, "--data: GET has no body."),
        (("http://127.0.0.1/",), {"method": "GE T"}, "--method: 'GE T' is no method."),
        (("http://127.0.0.1/",), {"data": "/none"}, "--data: '/none': No such file or directory."),
        (("http://127.0.0.1/",), {"list": "/none"}, "--urls: '/none': No such file or directory."),
        (("http://127.0.0.1/",), {"requests": 0}, "--requests: 0 is not above zero."),
        (("http://127.0.0.1/",), {"concurrency": "many"}, "--concurrency: 'many' is not a whole"),
        (("http://127.0.0.1/",), {"settle": "soon"}, "--settle: "),
        (("http://127.0.0.1/",), {"min_share": 101}, "--min-share: 101 is not a percentage"),
        (("http://127.0.0.1/",), {"mode": ["quick"]}, "--mode: 'quick' is none of normal, "),
        (("http://127.0.0.1/",), {"expect": ["4xx"]}, "--expect: '4xx' is no status. Write 404."),
    ],
)
def test_a_wrong_call_ends_with_one_sentence(urls, options, message):
    run = probe(*urls, **options)
    assert (run.exit_code, run.urls) == (2, [])
    assert run.error.startswith(message), run.error
    assert "secret" not in run.said.replace("may hold a secret", "")


def test_a_name_that_leads_nowhere_is_no_connection(own):
    run = probe("http://no-such-host.invalid/")
    assert (run.exit_code, run.summary["event"]) == (5, "error")
    assert run.error.startswith("no-such-host.invalid leads to no address.")
    run = probe("http://no-such-host.invalid/", i_own_this_host=True, **own)
    assert (run.exit_code, run.only["verdict"]) == (5, "unclear")


def test_a_server_that_speaks_no_http_is_unclear(site: WebServer, own):
    def speaks(request):
        request.wfile.write(b"220 mail.example ESMTP\r\n")

    site.views["/speaks"] = speaks
    run = probe(site.url("/speaks"), **own)
    assert (run.exit_code, run.only["failures"]) == (4, {"not HTTP": 1})


def test_the_probe_says_what_to_install_where_aiohttp_is_absent(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    run = probe("http://127.0.0.1/")
    assert (run.exit_code, run.error) == (
        2,
        "leak_probe needs aiohttp. Type: pip install 'conn-guard[probe]'.",
    )


def test_a_wrong_setting_is_refused(settings):
    settings.CONN_GUARD = {"CLOSE": "sometimes"}
    assert probe("http://127.0.0.1/").exit_code == 2


def test_the_probe_is_a_function(site: WebServer, own, application_name):
    options = Options(
        requests=12, concurrency=3, settle=FEW_SETTLE, applications=(application_name,)
    )
    progress: list[tuple[int, int]] = []
    (report,) = probe_urls(
        [site.url("/leaks")],
        options,
        progress=lambda target, mode, done, due: progress.append((done, due)),
    )
    assert (report.verdict, report.leaked) == (Verdict.LEAKS, 12)
    assert progress[-1] == (24, 24)
    with pytest.raises(TargetError):
        probe_urls(["http://192.0.2.1/"], options)


def test_a_silent_run_prints_nothing(site: WebServer, own):
    run = probe(site.url("/clean"), **own, verbosity=0, format="text")
    assert (run.exit_code, run.said) == (0, "")


def test_no_connection_of_the_project_is_opened(site: WebServer, own):
    connections.close_all()
    probe(site.url("/clean"), **own)
    assert connections["default"].connection is None
