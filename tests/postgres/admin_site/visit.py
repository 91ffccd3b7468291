"""A user at the admin page, through Django's client."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.test import Client

PAGE = "/admin/conn_guard_admin/session/"


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


def logged():
    """Return what the admin's log says, the oldest entry first."""
    entries = apps.get_model("admin", "LogEntry").objects.order_by("pk")
    return [(each.object_id, each.object_repr, each.get_change_message()) for each in entries]
