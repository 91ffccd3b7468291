"""The probe's values: the URLs that it takes, its verdicts, and its outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import conn_guard.probe
from conn_guard.probe.options import Mode, Options
from conn_guard.probe.render import (
    MIDDLEWARE,
    cure,
    render_probe_json,
    render_progress,
    render_reports,
)
from conn_guard.probe.sightings import Look, Mark, Sightings
from conn_guard.probe.targets import (
    Target,
    TargetError,
    UnresolvedError,
    read_list,
    refuse_other_hosts,
    target,
    without_secrets,
)
from conn_guard.probe.verdict import Requests, UrlReport, Verdict, exit_code, judge
from conn_guard.sessions import policy
from conn_guard.sessions.groups import Row
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import State
from tests.support.rows import NOON, session

URL = target("http://127.0.0.1:8000/cart/")
TEN = Options(requests=10, concurrency=2)
ANSWERED = Requests(statuses={200: 20}, longest=timedelta(seconds=0.2))

WHY = "the first 200 requests left 41 sessions of shop:server, and the next 200 used none of them"

# When the looks of each test were made, in seconds after the first.
LOADED, QUIET, RESTED = {1: 1, 2: 6}, {1: 2, 2: 7}, {1: 5, 2: 10}


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def life(pid, opened, *used, closed=99, state=State.IDLE, name="shop:server"):
    """A session that was *opened*, *used* at these seconds, and *closed*."""

    def row(now):
        stirs = [each for each in (opened, *used) if each <= now]
        if not opened <= now < closed:
            return None
        return Row(
            session=replace(
                session(pid=pid, state=state, application_name=name),
                backend_start=at(opened),
                state_change=at(stirs[-1]),
                observed_at=at(now),
            ),
            last="SELECT cart",
        )

    return row


def seen(*lives, rounds=2):
    """What the looks saw of *lives*; a look each tenth of a second while load ran."""

    def look(now):
        return Look(at(now), tuple(filter(None, (each(now) for each in lives))))

    sightings = Sightings(look(0))
    for number in range(1, rounds + 1):
        start = 0 if number == 1 else RESTED[1]
        for tenth in range(1, 10):
            sightings.add(look(start + tenth / 10))
        sightings.mark(Mark.LOADED, number, look(LOADED[number]))
        sightings.mark(Mark.QUIET, number, look(QUIET[number]))
        for second in range(QUIET[number], RESTED[number]):
            sightings.add(look(second + 0.5))
        sightings.mark(Mark.RESTED, number, look(RESTED[number]))
    return sightings


def judged(*lives, requests=ANSWERED, options=TEN, rounds=2, slots=None, stopped=False):
    return judge(
        URL,
        Mode.NORMAL,
        options,
        seen=seen(*lives, rounds=rounds),
        requests=requests,
        slots=slots,
        stopped=stopped,
    )


def once(pid, opened, **fields):
    return life(pid, opened, opened + 0.1, **fields)


def test_sessions_that_the_second_round_does_not_use_leak():
    report = judged(*(once(pid, 0.5) for pid in range(3)), *(once(9 + n, 5.5) for n in range(3)))
    assert (report.verdict, report.leaked, report.left, report.peak) == (Verdict.LEAKS, 3, 6, 6)
    assert report.last == ["SELECT cart"]
    assert report.why == (
        "the first 10 requests left 3 sessions of shop:server, and the next 10 used none of them"
    )


def test_a_leak_that_the_collector_ends_in_the_second_round_is_one():
    second = [once(10 + pid, 5.3, closed=5.6) for pid in range(3)]
    report = judged(*(once(pid, 0.5, closed=5.6) for pid in range(3)), *second)
    assert (report.verdict, report.leaked, report.left) == (Verdict.LEAKS, 3, 0)
    assert "; 3 of them ended later, unused" in report.why


def test_a_session_a_worker_that_ends_in_the_second_round_proves_nothing():
    options = replace(TEN, concurrency=3)
    second = [once(10 + pid, 5.4, closed=99) for pid in range(3)]
    workers = [once(pid, 0.5, closed=5.4) for pid in range(3)]
    report = judged(*workers, *second, options=options)
    assert (report.verdict, report.leaked, report.peak) == (Verdict.UNCLEAR, 0, 3)
    assert report.why.startswith("3 sessions ended in the second round without a use, as ")
    report = judged(*workers, once(20, 0.5), once(21, 0.5), *second, options=options)
    assert (report.verdict, report.leaked) == (Verdict.LEAKS, 5)


def test_a_worker_that_connects_now_and_then_is_no_leak_of_the_url():
    closed = [once(10 + n, second, closed=second + 0.2) for n, second in enumerate((0.3, 0.5, 5.3))]
    worker = [once(pid, 0.5, name="shop:mails") for pid in range(3)]
    report = judged(*closed, *(once(20 + n, 0.7, closed=0.9) for n in range(3)), *worker)
    assert (report.verdict, report.leaked) == (Verdict.CLEAN, 0)


def test_a_leak_of_another_application_than_the_busiest_is_one():
    closed = [once(10 + n, 0.1 + n / 10, closed=0.2 + n / 10) for n in range(8)]
    leaks = [once(30 + n, second, name="shop:api") for n, second in enumerate((0.5, 0.5, 5.5, 5.5))]
    report = judged(*closed, *leaks)
    assert (report.verdict, report.leaked) == (Verdict.LEAKS, 2)
    assert "left 2 sessions of shop:api, " in report.why


def test_sessions_used_in_both_rounds_are_kept():
    report = judged(*(life(pid, 0.2, 0.4, 0.9, 5.4) for pid in range(3)))
    assert (report.verdict, report.leaked, report.reused) == (Verdict.KEEPS, 0, 3)


def test_open_transactions_of_kept_sessions_are_told():
    state = State.IDLE_IN_TRANSACTION
    report = judged(*(life(pid, 0.2, 0.9, 5.4, state=state) for pid in range(3)))
    assert report.verdict is Verdict.KEEPS
    assert report.why.endswith("; 3 of them in an open transaction")


def test_a_pool_may_have_more_sessions_than_the_second_round_uses():
    pool = [life(1, 0.2, 0.9, 5.5), *(once(pid, 0.5) for pid in range(2, 5))]
    report = judged(*pool)
    assert (report.verdict, report.leaked, report.reused) == (Verdict.KEEPS, 0, 1)
    assert judged(*pool, once(9, 5.5, closed=5.7)).verdict is Verdict.LEAKS


def test_sessions_that_conn_max_age_replaces_are_kept():
    short = [life(pid, 0.2, 0.5, 0.9, closed=5.1) for pid in range(3)]
    short += [life(10 + pid, 5.1, 5.4, 5.9) for pid in range(3)]
    report = judged(*short)
    assert (report.verdict, report.leaked, report.reused) == (Verdict.KEEPS, 0, 3)


def test_sessions_from_before_count_as_kept_where_the_load_uses_them():
    report = judged(*(life(pid, -60, 0.5, 5.5) for pid in range(3)))
    assert (report.verdict, report.before, report.reused) == (Verdict.KEEPS, 3, 3)


def test_the_heartbeat_of_another_application_is_not_kept_by_the_url():
    beat = life(1, -60, *(each / 4 for each in range(48)))
    report = judged(beat, *(once(10 + n, n / 10, closed=n / 10 + 0.15) for n in range(1, 9)))
    assert (report.verdict, report.reused) == (Verdict.CLEAN, 0)


@pytest.mark.parametrize(("name", "beats"), [("shop:server", (5.5,)), ("shop:mails", (0.5, 5.5))])
def test_a_heartbeat_slower_than_the_rests_leaves_the_url_clean(name, beats):
    closed = [
        once(10 * start + n, start + n / 20, closed=start + n / 20 + 0.15)
        for start in (0, 5)
        for n in range(1, 13)
    ]
    report = judged(life(1, -60, -60, *beats, name=name), *closed)
    assert (report.verdict, report.reused) == (Verdict.CLEAN, 0)


def test_a_heartbeat_alone_is_no_proof_of_work():
    report = judged(life(1, -60, *(each / 4 for each in range(48))))
    assert (report.verdict, report.is_silent, report.saw_work) == (Verdict.UNCLEAR, True, False)


def test_sessions_whose_use_the_server_hides_are_unclear():
    report = judged(*(once(pid, 0.5, state=State.DISABLED) for pid in range(3)))
    assert report.verdict is Verdict.UNCLEAR
    assert report.why.startswith("track_activities is off for the server's role")


def test_sessions_that_end_at_once_leave_the_url_clean():
    report = judged(*(once(n, n / 10, closed=n / 10 + 0.15) for n in range(1, 9)))
    assert (report.verdict, report.why) == (Verdict.CLEAN, "no session is left")


def test_one_session_that_stays_is_no_leak():
    report = judged(once(1, 0.5), once(2, 5.5))
    assert (report.verdict, report.leaked) == (Verdict.CLEAN, 1)
    assert report.why == "2 sessions are left, fewer than a leak"


def test_a_session_at_work_since_the_first_round_is_no_leak():
    report = judged(*(once(pid, 0.5, state=State.ACTIVE) for pid in range(3)))
    assert report.leaked == 0


def test_work_that_goes_on_after_the_answers_is_work_of_the_load():
    streams = [
        life(pid, start + 0.9, *(start + each / 4 for each in range(4, 20)), closed=start + 4.9)
        for start in (0, 5)
        for pid in range(10 * start, 10 * start + 4)
    ]
    report = judged(*streams)
    assert (report.verdict, report.saw_work, report.left) == (Verdict.CLEAN, True, 0)


def test_sessions_that_are_still_at_work_prove_nothing():
    report = judged(*(once(pid, 0.5, state=State.ACTIVE) for pid in range(3)))
    assert (report.verdict, report.left) == (Verdict.UNCLEAR, 3)
    assert report.why == "3 sessions still worked after the rest: repeat with a longer --settle"


def test_sessions_of_the_first_round_alone_prove_nothing():
    report = judged(*(once(pid, 0.5) for pid in range(3)))
    assert (report.verdict, report.left, report.leaked) == (Verdict.UNCLEAR, 3, 0)
    assert report.why.startswith("3 sessions of the first round stayed unused, and the second")
    assert judged(once(1, 0.5)).verdict is Verdict.CLEAN


def test_a_leak_that_took_every_slot_in_the_first_round_is_one():
    full = Slots(97, 97, exact=True)
    report = judged(*(once(pid, 0.5) for pid in range(3)), slots=full)
    assert (report.verdict, report.leaked) == (Verdict.LEAKS, 3)
    report = judged(life(9, 0.2, 0.9, 5.4), *(once(pid, 0.5) for pid in range(3)), slots=full)
    assert (report.verdict, report.leaked, report.reused) == (Verdict.LEAKS, 3, 1)
    pool = [life(pid, 0.2, 0.9, 5.4) for pid in range(10, 14)]
    assert judged(*pool, *(once(n, 0.5) for n in range(3)), slots=full).verdict is Verdict.KEEPS
    # The sessions that an earlier URL left took the slots.
    report = judged(*(life(pid, -60) for pid in range(3)), slots=full)
    assert (report.verdict, report.is_silent) == (Verdict.UNCLEAR, False)
    assert report.why.startswith("no session could be used: all 97 slots of the database server")


def test_sessions_of_the_second_round_alone_prove_nothing():
    report = judged(*(once(pid, 5.5) for pid in range(3)))
    assert (report.verdict, report.leaked) == (Verdict.UNCLEAR, 0)
    assert "repeat with more --requests" in report.why


def test_what_others_leave_in_a_rest_is_taken_off():
    others = [once(pid, 2 + pid / 10) for pid in range(1, 29)]
    assert judged(once(90, 0.5), once(91, 0.6), *others).verdict is Verdict.UNCLEAR
    leak = [once(100 + pid, 0.5) for pid in range(80)] + [once(300, 5.5)]
    report = judged(*leak, *others)
    assert report.verdict is Verdict.LEAKS
    assert "other traffic explains about 19 of them" in report.why


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        (Requests(statuses={200: 190, 503: 2}), "of 192 requests 2 answered 503"),
        (Requests(statuses={200: 1}, failures={"closed": 1}), "of 2 requests 1 closed"),
        (Requests(statuses={404: 20}), "20 of 20 requests were answered 404, so the page wasn't"),
        (Requests(failures={"no connection": 1}, unreachable="refused"), "no connection: refused"),
        (Requests(statuses={404: 20}, expected=[410]), "20 of 20 requests were answered 404"),
        (Requests(), "no request was sent"),
    ],
)
def test_answers_that_failed_are_unclear(requests, why):
    report = judged(*(once(n, n / 10, closed=n / 10 + 0.15) for n in range(9)), requests=requests)
    assert report.verdict is Verdict.UNCLEAR
    assert report.why.startswith(why)


def test_statuses_that_are_expected_are_right():
    requests = Requests(statuses={404: 12, 500: 8}, expected=[404, 500])
    report = judged(*(once(n, n / 10, closed=n / 10 + 0.15) for n in range(9)), requests=requests)
    assert (report.verdict, report.requests.errors) == (Verdict.CLEAN, 0)
    assert judged(*(once(n, 0.5) for n in range(3)), once(9, 5.5), requests=requests).leaked == 3


def test_few_failures_leave_the_verdict_as_it_is():
    requests = Requests(statuses={200: 398, 304: 100, 500: 2})
    report = judged(*(once(n, n / 10, closed=n / 10 + 0.15) for n in range(9)), requests=requests)
    assert (report.verdict, report.requests.errors) == (Verdict.CLEAN, 2)


def test_failures_at_a_full_server_name_the_slots():
    requests = Requests(statuses={500: 20})
    report = judged(requests=requests, slots=Slots(97, 97, exact=True))
    assert "all 97 slots of the database server were taken: lower --concurrency" in report.why
    assert report.slots_total == 97


def test_a_probe_that_was_stopped_is_unclear():
    sessions = [life(pid, 0.2, 0.4, 5.4) for pid in range(3)]
    for rounds in (0, 1):
        report = judged(*sessions, rounds=rounds, stopped=True)
        assert (report.verdict, report.leaked) == (Verdict.UNCLEAR, 0)
        assert report.why == "stopped after 20 requests"


def test_a_leak_weighs_more_than_any_other_end():
    def report(verdict, **fields):
        return UrlReport(target=URL, mode=Mode.NORMAL, verdict=verdict, **fields)

    unreachable = report(Verdict.UNCLEAR, requests=Requests(unreachable="refused"))
    ends = [report(Verdict.CLEAN), report(Verdict.KEEPS)]
    assert exit_code(ends) == 0
    ends.append(report(Verdict.UNCLEAR))
    assert exit_code(ends) == 4
    ends.append(unreachable)
    assert exit_code(ends) == 5
    ends.append(report(Verdict.LEAKS))
    assert exit_code(ends) == 3


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("https://localhost/a?b=c#d", "https://localhost/a?b=c"),
        ("http://[::1]:8000/", "http://[::1]:8000/"),
    ],
)
def test_a_url_is_read(given, url):
    assert target(given) == Target(url)


@pytest.mark.parametrize(
    "given", ["", "/x", "127.0.0.1:80/", "http://", "http://h:0/", "http://a b"]
)
def test_what_is_no_url_is_refused(given):
    with pytest.raises(TargetError, match=r"is no URL\. Write http://127\.0\.0\.1:8000/path/\."):
        target(given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_this_machine_may_be_probed(host):
    refuse_other_hosts([target(f"http://{host}/")])


@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.0.1", "0.0.0.0", "[2001:db8::1]"])
def test_another_host_is_refused(host):
    with pytest.raises(TargetError, match="add --i-own-this-host if it is your own"):
        refuse_other_hosts([URL, target(f"http://{host}/")])


def test_an_unknown_name_is_told():
    with pytest.raises(UnresolvedError, match="leads to no address"):
        refuse_other_hosts([target("http://no-such-host.invalid/")])


def test_a_list_of_urls_has_comments():
    text = "# pages\n\nhttp://127.0.0.1/a\n  http://127.0.0.1/b  # the cart\nhttp://127.0.0.1/a\n"
    assert [each.url for each in read_list(text, []).targets] == [
        "http://127.0.0.1/a",
        "http://127.0.0.1/b",
    ]


def har(*entries):
    asked = [{"request": {"method": method, "url": url}} for method, url in entries]
    return "\ufeff" + json.dumps({"log": {"version": "1.2", "entries": asked}})


def test_a_recording_gives_the_pages_of_the_given_host():
    text = har(
        ("GET", "http://127.0.0.1:9/other"),
        ("GET", "http://127.0.0.1:8000/a"),
        ("POST", "http://127.0.0.1:8000/a"),
        ("GET", "data:image/png;base64,x"),
    )
    read = read_list(text, [URL])
    assert (read.targets, read.other_hosts, read.other_methods) == (
        [Target("http://127.0.0.1:8000/a")],
        1,
        1,
    )
    assert len(read_list(text, [URL], any_method=True).targets) == 2
    assert read_list(text, []).targets == [Target("http://127.0.0.1:9/other")]


@pytest.mark.parametrize("text", ["{", "{}", '{"log": {"entries": [{}]}}'])
def test_a_file_that_is_no_recording_is_refused(text):
    with pytest.raises(TargetError, match="it is no HAR file"):
        read_list(text, [])


def test_a_list_with_a_wrong_line_is_refused():
    with pytest.raises(TargetError, match=r"'/a' is no URL"):
        read_list("/a", [])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pw@h/a", "http://h/a"),
        ("http://h/a?q=1&api_key=2;x=3&Token=4", "http://h/a?q=1&api_key=***;x=3&Token=***"),
        ("http://h/\x1b[31m", r"http://h/\x1b[31m"),
        ("http://[h/", "(a URL that can't be read)"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert without_secrets(url) == shown


CURE = "Add 'conn_guard.middleware.ConnectionGuardMiddleware' as the first of MIDDLEWARE."
LEAK = UrlReport(
    target=target("http://127.0.0.1:8000/cart/?token=x"),
    mode=Mode.NORMAL,
    verdict=Verdict.LEAKS,
    why=WHY,
    requests=Requests(statuses={200: 400}),
    before=1,
    peak=60,
    left=42,
    leaked=41,
    leaked_in_transaction=2,
    application_names=["shop:server"],
    last=["SELECT cart"],
    views=["shop.views.cart"],
    slots_total=97,
)
CLEAN = UrlReport(
    target=URL,
    mode=Mode.DISCONNECT,
    verdict=Verdict.CLEAN,
    why="no session is left",
    requests=Requests(statuses={200: 399}, failures={"timed out": 1}),
)


def test_the_table_and_its_sentences():
    golden = Path(__file__).with_name("goldens") / "probe.txt"
    lines = render_reports([LEAK, CLEAN], cure=CURE)
    assert lines == golden.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("apps", "middleware", "engine", "words"),
    [
        ([], [], "django.db.backends.postgresql", "Add 'conn_guard' to INSTALLED_APPS, and "),
        (["conn_guard"], [], "django.db.backends.postgresql", CURE),
        (
            ["conn_guard.apps.ConnGuardConfig"],
            [MIDDLEWARE],
            "django.db.backends.postgresql",
            "Set ENGINE = 'conn_guard.engine.postgresql' in DATABASES['shop'].",
        ),
        (["conn_guard"], [MIDDLEWARE], "conn_guard.engine.postgis", "These settings have app, "),
    ],
)
def test_the_cure_is_what_the_settings_lack(apps, middleware, engine, words):
    assert cure("shop", apps, middleware, engine).startswith(words)


def test_a_narrow_terminal_cuts_names_and_no_number():
    lines = render_reports([LEAK, CLEAN], cure=CURE, width=80)
    assert all(len(each) <= 80 for each in lines[:3])
    assert lines[1].startswith("/cart…")
    assert lines[1].endswith("leaks")


def test_the_json_has_the_documented_fields():
    event, _, summary = map(
        json.loads, render_probe_json([LEAK, CLEAN], exit_code=3, seconds=1.23456)
    )
    assert event == {
        "event": "url",
        "url": "http://127.0.0.1:8000/cart/?token=***",
        "method": "GET",
        "mode": "normal",
        "requests": 400,
        "statuses": {"200": 400},
        "errors": 0,
        "failures": {},
        "before": 1,
        "peak": 60,
        "left": 42,
        "leaked": 41,
        "leaked_in_transaction": 2,
        "reused": 0,
        "application_names": ["shop:server"],
        "last": ["SELECT cart"],
        "views": ["shop.views.cart"],
        "slots_total": 97,
        "verdict": "leaks",
        "why": WHY,
    }
    assert summary == {
        "event": "summary",
        "urls": 2,
        "leaks": 1,
        "keeps": 0,
        "clean": 1,
        "unclear": 0,
        "seconds": 1.235,
        "exit": 3,
    }


def test_the_progress_fits_one_line():
    line = render_progress("http://127.0.0.1:8000/a/long/path", 100, 400, width=50)
    assert line.startswith("[#####...............] 100/400 http")
    assert len(line) < 50


def test_the_options_show_no_secret():
    options = Options(headers={"Authorization": "secret"}, cookies={"a": "secret"}, data=b"secret")
    assert "secret" not in repr(options)


def test_the_reaper_spares_a_probe():
    probe = session(application_name="conn_guard:leak_probe")
    assert policy.judge(probe, Policy(idle_for=timedelta(0))) is policy.Verdict.REAPER


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'everything'"):
        _ = conn_guard.probe.everything
