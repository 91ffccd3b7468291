"""The admin page in a real browser, with a policy that forbids scripts within the page."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test.testcases import LiveServerThread

from tests.postgres.admin_site import admin_project
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.programs import require

pytestmark = pytest.mark.django_db(transaction=True)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUICK = "window.setTimeout = ((later) => (run, ms) => later(run, ms / 50))(window.setTimeout)"
"""Lets a page refresh itself every tenth of a second."""


@pytest.fixture(scope="module", autouse=True)
def project(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), admin_project():
        yield


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server() as server:
        yield server


@pytest.fixture(scope="module")
def address(project):
    """The address of the project, served by a thread of this process."""
    thread = LiveServerThread("127.0.0.1", StaticFilesHandler)
    thread.start()
    thread.is_ready.wait()
    assert thread.error is None
    yield f"http://127.0.0.1:{thread.port}"
    thread.terminate()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = require("chromium")
    with pytest.MonkeyPatch.context() as patch, playwright.sync_playwright() as started:
        # Playwright leaves an event loop on this thread, where Django refuses to query.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, server):
    """A page of a superuser, on which the browser finds nothing to complain about."""
    User.objects.create_superuser("op", password="op")
    page, said = browser.new_page(), []
    page.set_viewport_size({"width": 1280, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(20_000)
    with server.alias():
        page.goto(f"{address}/admin/login/?next=/admin/conn_guard_admin/session/")
        page.fill("[name=username]", "op")
        page.fill("[name=password]", "op")
        page.click("[type=submit]")
        page.select_option("[name=alias]", "own")
        page.click("text=Filter")
        yield page
        page.context.close()
    assert said == []


def cells(page, column):
    return page.locator(f"#result_list tbody tr > :nth-child({column})").all_inner_texts()


def test_an_operator_filters_sorts_and_ends_sessions(page, server, ask):
    nasty = server.session(application_name="<script>alert(1)</script>")
    group = [server.session() for _ in range(3)]
    group[0].execute("LISTEN channel")
    server.rested(nasty, *group)
    page.reload()
    page.select_option("[name=application]", "shop")
    page.click("text=Filter")
    assert set(cells(page, 4)) == {"shop"}
    page.click("#result_list >> text=PID")
    assert cells(page, 2) == sorted(cells(page, 2), key=int)
    page.click("#result_list >> text=PID")
    assert cells(page, 2) == sorted(cells(page, 2), key=int, reverse=True)
    page.click("#group_list button")
    assert "Terminate 2 sessions" in page.inner_text("#content")
    assert "its last statement was LISTEN" in page.inner_text("#content")
    page.click("text=Yes, terminate 2")
    assert "Signalled 2 sessions" in page.inner_text(".messagelist")
    until(lambda: not any(map(server.alive, group[1:])))
    assert server.alive(group[0])
    page.select_option("[name=application]", "")
    page.click("text=Filter")
    page.check(f"[aria-label='Select pid {nasty.pid}']")
    page.click("button:text-is('Go')")
    assert "<script>alert(1)</script>" in page.inner_text("#content")
    page.click("text=Yes, terminate 1")
    until(lambda: not server.alive(nasty))
    assert {pid for (pid,) in ask("SELECT object_id FROM django_admin_log")} == {
        str(each.pid) for each in (nasty, *group[1:])
    }


def test_the_switch_refreshes_the_page_and_keeps_what_was_selected(page, server):
    first = server.session()
    server.rested(first)
    page.add_init_script(QUICK)
    page.reload()
    box = page.get_by_label("Refresh every 5 s")
    assert not box.is_checked()
    page.check("#action-toggle")
    box.check()
    page.focus("#action-toggle")
    second = server.session()
    row = page.locator(f"tr[data-pid='{second.pid}']")
    row.wait_for()
    assert page.evaluate("document.activeElement.id") == "action-toggle"
    assert page.is_checked(f"[aria-label='Select pid {first.pid}']")
    assert not page.is_checked(f"[aria-label='Select pid {second.pid}']")
    page.reload()
    assert page.get_by_label("Refresh every 5 s").is_checked()
    page.context.clear_cookies()
    page.locator("text=You are logged out: reload the page.").wait_for()
    page.get_by_label("Refresh every 5 s").uncheck()


def test_nothing_is_wider_than_a_phone(page, server):
    server.rested(server.session(application_name="a-long-name-" * 5))
    page.set_viewport_size({"width": 360, "height": 800})
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
