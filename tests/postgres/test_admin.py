"""The admin page on a real server, through Django's client."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client, override_settings

from tests.postgres.admin_site import admin_project
from tests.support.own_server import own_server
from tests.support.polling import until

pytestmark = pytest.mark.django_db(transaction=True)

ROLES = {"app": "LOGIN", "billing": "LOGIN", "boss": "LOGIN SUPERUSER"}
PAGE = "/admin/conn_guard_admin/session/"


@pytest.fixture(scope="module", autouse=True)
def project(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), admin_project():
        yield


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES, max_connections=130) as server:
        server.ask("CREATE DATABASE other")
        yield server


@pytest.fixture
def server(server):
    with server.alias():
        yield server


class Form(HTMLParser):
    """The forms of a page: the fields of each, as a browser would send them."""

    def __init__(self, text):
        super().__init__()
        self.forms = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "form":
            self.forms.append({"action": given.get("action"), "fields": {}})
        elif tag in ("input", "button") and self.forms and given.get("name"):
            fields = self.forms[-1]["fields"]
            fields.setdefault(given["name"], []).append(given.get("value", ""))


class Operator:
    """A user at the page."""

    def __init__(self, *permissions, path=PAGE, **fields):
        self.user = User.objects.create_user("op", password="op", is_staff=True, **fields)
        content_type, _ = ContentType.objects.get_or_create(
            app_label="conn_guard_admin", model="session"
        )
        for name in permissions:
            permission, _ = Permission.objects.get_or_create(
                codename=f"{name}_session", content_type=content_type
            )
            self.user.user_permissions.add(permission)
        self.client = Client(enforce_csrf_checks=True)
        self.client.force_login(self.user)
        self.path = path
        self.response = None

    def look(self, **choice):
        self.response = self.client.get(self.path, {"alias": "own", **choice})
        return self

    @property
    def text(self):
        return self.response.content.decode()

    @property
    def verdicts(self):
        """The verdict on each session of the table, by pid, in its order."""
        table = self.text.partition('id="result_list"')[2] or self.text
        found = re.findall(r'<tr data-pid="(\d+)" data-verdict="(\w*)">', table)
        return {int(pid): slug for pid, slug in found}

    def token(self, session):
        (found,) = set(re.findall(rf'value="({session.pid}:\d+:\d+)"', self.text))
        return found

    def post(self, tokens, *, path=None, **more):
        """Send a form of the page that names *tokens*."""
        csrf = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.text)
        fields = {"action": "terminate", "_selected_action": tokens, **more}
        if csrf:
            fields["csrfmiddlewaretoken"] = csrf[1]
        self.response = self.client.post(path or f"{self.path}?alias=own", fields)
        return self

    def ask(self, *sessions):
        """Select *sessions* on the page, and go to the question."""
        self.look()
        return self.post([self.token(each) for each in sessions])

    def confirm(self):
        """Answer the question with yes, and return what the page says then."""
        (form,) = (each for each in Form(self.text).forms if "post" in each["fields"])
        self.response = self.client.post(form["action"], form["fields"], follow=True)
        return [str(each) for each in self.response.context["messages"]]


@pytest.fixture
def operator():
    return Operator("view", "terminate")


def entries():
    return list(apps.get_model("admin", "LogEntry").objects.order_by("pk"))


def logged():
    return [(each.object_id, each.object_repr, each.get_change_message()) for each in entries()]


def test_the_page_shows_slots_groups_and_sessions_with_the_verdicts(server, operator):
    idle = [server.session() for _ in range(3)]
    lock, foreign = server.session(), server.session("billing")
    lock.execute("SELECT pg_advisory_lock(1)")
    server.rested(*idle, lock, foreign)
    operator.look()
    assert operator.response.status_code == 200
    assert {operator.verdicts[each.pid] for each in idle} == {"idle"}
    assert operator.verdicts[lock.pid] == "advisory_lock"
    assert operator.verdicts[foreign.pid] == ""
    assert re.search(r"\d+ of 127 of the server&#x27;s slots are taken", operator.text)
    assert "3 would be ended" in operator.text
    assert "1 holds an advisory lock" in operator.text
    assert "SELECT" in operator.text
    assert "pg_advisory_lock(1)" not in operator.text
    assert "GRANT pg_read_all_stats TO app;" in operator.text  # billing's session is masked


def test_one_session_is_ended_after_a_question_and_logged(server, operator):
    victim, other = server.session(application_name="shop:view"), server.session()
    server.rested(victim, other)
    operator.ask(victim)
    assert operator.verdicts == {victim.pid: "idle"}
    assert server.alive(victim)
    assert operator.confirm() == [f"Signalled 1 session: pid {victim.pid}."]
    until(lambda: not server.alive(victim))
    assert server.alive(other)
    name = f"pid {victim.pid}, role app, application shop:view"
    assert logged() == [(str(victim.pid), name, f"Terminated on own: {name}.")]
    (entry,) = entries()
    assert entry.user == operator.user
    assert entry.content_type.app_label == "conn_guard_admin"
