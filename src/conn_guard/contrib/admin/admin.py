"""The page "Sessions": shows the server's sessions, and ends those that the judge doesn't spare."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.management.base import CommandError
from django.core.paginator import Paginator
from django.db import Error, InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from conn_guard.contrib.admin.models import Session
from conn_guard.contrib.admin.page import (
    NOT_IN_SCOPE,
    NOT_TRIED,
    Choice,
    Identity,
    Line,
    Page,
    identity,
    read_tokens,
    reason,
)
from conn_guard.management import arguments
from conn_guard.sessions.groups import Row, Snapshot
from conn_guard.sessions.login import LostError, error_text
from conn_guard.sessions.look import Observer
from conn_guard.sessions.meaning import meanings
from conn_guard.sessions.policy import Policy, Verdict
from conn_guard.sessions.reaper import end_chosen
from conn_guard.sessions.report import Action, Outcome, RunError
from conn_guard.text import one_line, printable

logger = logging.getLogger("conn_guard.admin")

ON_A_PAGE = 100
EVERY_SECONDS = 5
"""The time between two refreshes while the switch is on."""
LOG_IN_FOR = timedelta(0)
"""One try: a page can wait for connect_timeout, and not for half a minute."""
PIDS_TOLD = 5
"""Pids that a message names."""
TEMPLATES = "admin/conn_guard_admin/session"

View = Callable[..., HttpResponse]


@admin.register(Session)
class SessionAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The page; register it with ``site.register(Session, SessionAdmin)`` on a site of your own."""

    def get_urls(self) -> list[URLPattern]:
        """Return the page's only address."""
        view: View = _answering(self.admin_site.admin_view(self.changelist_view))
        # A rollback would undo the log of sessions that have been ended.
        for alias in connections:
            view = transaction.non_atomic_requests(alias)(view)
        return [path("", view, name="conn_guard_admin_session_changelist")]

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Return whether the user may view sessions, or end them."""
        return super().has_view_permission(request) or self.has_terminate_permission(request)

    def has_terminate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may end sessions."""
        user: Any = request.user
        return bool(user.has_perm("conn_guard_admin.terminate_session"))

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Return False."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Return False."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Return False: ending a session has a permission of its own."""
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None
    ) -> HttpResponse:
        """Show the sessions; a POST asks whether to end sessions, or with ``post`` ends them.

        Raises PermissionDenied and BadRequest.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._terminate(request)
        context = {"every_seconds": EVERY_SECONDS, **(extra_context or {})}
        # The whole page would show, and so use up, messages that are meant for another tab.
        template = "live" if "X-Conn-Guard-Refresh" in request.headers else "change_list"
        try:
            aliases, _ = arguments.postgres_aliases(None, every=True)
            choice = Choice.of(request.GET.dict(), _usual(aliases))
            context |= {"aliases": aliases, "choice": choice}
            with _observer(choice.alias) as observer:
                snapshot = observer.look()
        except CommandError as error:
            return self._answer(request, template, {**context, "failure": str(error)})
        page = Page(snapshot, choice)
        paginator = Paginator(page.lines, ON_A_PAGE)
        shown = paginator.get_page(choice.page)
        pages = [
            (number, choice.query(page=str(number)) if isinstance(number, int) else "")
            for number in paginator.get_elided_page_range(shown.number)
        ]
        context |= {
            "page": page,
            "shown": shown,
            "pages": pages if paginator.num_pages > 1 else [],
            "meanings": meanings(snapshot),
            "failure": one_line(snapshot.failure or ""),
            "may_terminate": self.has_terminate_permission(request),
        }
        return self._answer(request, template, context)

    def _terminate(self, request: HttpRequest) -> HttpResponse:
        """Ask whether to end the chosen sessions; end them if the question was answered."""
        if not self.has_terminate_permission(request):
            raise PermissionDenied
        try:
            chosen = read_tokens(request.POST.getlist("_selected_action"))
        except ValueError:
            raise BadRequest("A session is named by pid:backend_start:state_change.") from None
        try:
            aliases, _ = arguments.postgres_aliases(None, every=True)
            choice = Choice.of(request.GET.dict(), _usual(aliases))
            back = f"{self._address()}{choice.query()}"
            if request.POST.get("action") != "terminate" or not chosen:
                self.message_user(request, "Select sessions to terminate first.", messages.WARNING)
                return HttpResponseRedirect(back)
            with _observer(choice.alias) as observer:
                snapshot = observer.look()
                rows = [row for row in snapshot.rows if identity(row.session) in chosen]
                if "post" in request.POST and snapshot.failure is None and not snapshot.refusal:
                    self._end(request, observer, snapshot, rows, chosen)
                    return HttpResponseRedirect(back)
        except CommandError as error:
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(self._address())
        lines = Choice(alias=choice.alias).ordered(Line(row, snapshot) for row in rows)
        context = {
            "title": "Terminate sessions",
            "choice": choice,
            "snapshot": snapshot,
            "failure": one_line(snapshot.failure or ""),
            "due": [line for line in lines if line.is_due],
            "spared": [line for line in lines if not line.is_due],
            "gone": 0 if snapshot.failure else len(chosen) - len(rows),
        }
        return self._answer(request, "terminate_confirmation", context)

    def _end(
        self,
        request: HttpRequest,
        observer: Observer,
        snapshot: Snapshot,
        rows: Sequence[Row],
        chosen: Mapping[Identity, datetime | None],
    ) -> None:
        """End those of *rows* that are due and were not used since the question; log, and tell."""
        alias = snapshot.alias
        still, outcomes = {}, []
        for row in rows:
            if row.verdict is None:
                outcomes.append(Outcome(row.session, Action.SPARED, NOT_IN_SCOPE))
            elif row.session.state_change != chosen[identity(row.session)]:
                outcomes.append(Outcome(row.session, Action.SPARED, Verdict.MOVED_ON.value))
            else:
                still[identity(row.session)] = row.session
        try:
            for outcome in end_chosen(observer.server(), alias, snapshot.policy, tuple(still)):
                still.pop(identity(outcome.session), None)
                outcomes.append(outcome)
        except RunError as error:
            self.message_user(request, one_line(str(error)), messages.ERROR)
            return
        except (LostError, Error) as error:
            text = one_line(error_text(error, alias))
            self.message_user(request, f"{alias}: the signals failed: {text}", messages.ERROR)
            outcomes += [Outcome(each, Action.WOULD_SIGNAL, NOT_TRIED) for each in still.values()]
        self._log(request, alias, outcomes)
        for level, sentence in _told(outcomes, len(chosen)):
            self.message_user(request, sentence, level)

    def _log(self, request: HttpRequest, alias: str, outcomes: Iterable[Outcome]) -> None:
        """Write a LogEntry for each signal."""
        signals = [each for each in outcomes if each.action in (Action.SIGNALLED, Action.FAILED)]
        try:
            content_type = ContentType.objects.get_for_model(Session, for_concrete_model=False)
            LogEntry.objects.bulk_create(
                LogEntry(
                    user_id=request.user.pk,
                    content_type_id=content_type.pk,
                    object_id=str(each.session.pid),
                    object_repr=_named(each.session)[:200],
                    action_flag=DELETION,
                    change_message=_act(alias, each),
                )
                for each in signals
            )
        except Error:
            for each in signals:
                logger.exception("%s No log entry was written.", _act(alias, each))
            text = "The admin's log could not be written; the server's log names the sessions."
            self.message_user(request, text, messages.ERROR)

    def _answer(
        self, request: HttpRequest, template: str, context: Mapping[str, Any]
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        known = {
            **self.admin_site.each_context(request),
            "title": "Sessions",
            "opts": self.model._meta,
            "address": self._address(),
        }
        names = [f"{TEMPLATES}/{template}.html"]
        return TemplateResponse(request, names, {**known, **context})

    def _address(self) -> str:
        name = "admin:conn_guard_admin_session_changelist"
        return reverse(name, current_app=self.admin_site.name)


def _answering(view: View) -> View:
    """Return *view*, answering with one sentence where the admin's own database is away."""

    @functools.wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except (InterfaceError, OperationalError):
            # Without the request: its user and its messages are in that database.
            logger.warning("The admin's own database doesn't answer.", exc_info=True)
            return HttpResponse(render_to_string(f"{TEMPLATES}/no_answer.html"), status=503)

    return answer


def _usual(aliases: Sequence[str]) -> str:
    return "default" if "default" in aliases else aliases[0]


def _observer(alias: str) -> Observer:
    """Return an observer with the project's settings; raise CommandError for a wrong alias."""
    settings = arguments.settings()
    arguments.postgres_aliases([alias], every=False)
    policy = Policy(
        idle_for=settings.reap_idle_for,
        idle_in_transaction_for=settings.reap_idle_in_transaction_for,
        protected_applications=settings.protected_applications,
    )
    pooled = settings.pooler.get(alias) == "session"
    return Observer(alias, policy, pooled=pooled, connect_for=LOG_IN_FOR)


def _named(session: Any) -> str:
    return printable(
        f"pid {session.pid}, role {session.user}, application {session.application_name}"
    )


def _act(alias: str, outcome: Outcome) -> str:
    if outcome.action is Action.SIGNALLED:
        return f"Terminated on {alias}: {_named(outcome.session)}."
    return f"Tried to terminate on {alias}: {_named(outcome.session)}: {reason(outcome.reason)}."


def _told(outcomes: Iterable[Outcome], asked: int) -> Iterable[tuple[int, str]]:
    """Return what was done about the *asked* sessions, in sentences with their levels."""
    pids: dict[tuple[Action, str], list[int]] = {}
    for each in outcomes:
        pids.setdefault((each.action, reason(each.reason)), []).append(each.session.pid)
        asked -= 1
    for (action, words), found in pids.items():
        named = ", ".join(map(str, found[:PIDS_TOLD])) + ", …" * (len(found) > PIDS_TOLD)
        count = f"{len(found)} session{'s' * (len(found) != 1)}"
        if action is Action.SIGNALLED:
            yield messages.SUCCESS, f"Signalled {count}: pid {named}."
        elif action is Action.FAILED:
            yield messages.ERROR, f"Failed to signal {count} ({words}): pid {named}."
        elif action is Action.WOULD_SIGNAL:
            yield messages.WARNING, f"Did not signal {count} ({words}): pid {named}."
        else:
            yield messages.WARNING, f"Spared {count} ({words}): pid {named}."
    if asked:
        yield messages.INFO, f"{asked} of the chosen sessions had ended before."
