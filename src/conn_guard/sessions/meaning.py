"""Says what a snapshot means: rules over its groups and slots, each with the command to type."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from fnmatch import fnmatchcase

from conn_guard.sessions.census import SHORTER
from conn_guard.sessions.groups import Field, Group, Row, Snapshot, grouped, is_in_transaction
from conn_guard.sessions.policy import ANY_USER, Policy, matches
from conn_guard.sessions.session import CLIENT_BACKEND, OWN_APPLICATIONS, State
from conn_guard.text import duration, printable

IDLE_REAPER = "python manage.py idle_reaper"
LEAKED_SESSIONS = 5
"""Sessions of one application that look leaked before a report calls it a leak."""
ONE_REQUEST = timedelta(seconds=30)
"""A session that was used for no longer than this served one request."""
QUIET_FOR = timedelta(seconds=10)
"""A session that was used more recently than this may be used again."""
ONE_STATEMENT = 0.5
"""The share of leaked sessions that end with the same statement; a pool's sessions differ."""
SEVERAL_STATEMENTS = 2 * LEAKED_SESSIONS
"""Leaked sessions of several statements, LEAKED_SESSIONS or more of each, that are a leak too."""
KEPT_SESSIONS = 3
"""Sessions of one application that are used again before a report calls them kept."""
HELD_FOR = timedelta(seconds=5)
"""A transaction that is idle for less may belong to a request that is still running."""
NEARLY_FULL = 80
"""Percent of a limit from which a report warns of it."""
POOLERS = ("pgbouncer*", "pgpool*", "pgcat*", "odyssey*", "supavisor*", "pgdog*")
POOLED_ROLES = 3
"""Pairs of role and database behind one address that point to a pooler."""


class Level(Enum):
    """How much a meaning matters; the value is its name in JSON and HTML."""

    ALARM = "alarm"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A sentence about a snapshot, and what to type next."""

    kind: str
    level: Level
    sentence: str
    command: str = ""
    """A shell command or an SQL statement; "" if there is nothing to do."""


def meanings(
    snapshot: Snapshot, earlier: Snapshot | None = None, *, command: str = IDLE_REAPER
) -> list[Meaning]:
    """Return what *snapshot* means, the most urgent first; [] for a look that failed.

    *earlier* is a look at the same server before this one, from which growth is told. *command* is
    how idle_reaper is typed.
    """
    if snapshot.slots is None:
        return []
    typed = _Typed(snapshot, command)
    found = [each for rule in _RULES for each in rule(snapshot, typed)]
    found += _growth(snapshot, earlier, typed) if earlier else []
    if not found:
        slots = snapshot.slots
        are = "is" if slots.used == 1 else "are"
        words = f"{slots.used} of {slots.total} slots {are} taken, and no application looks leaky."
        found = [Meaning(kind="fine", level=Level.NOTE, sentence=words)]
    order = list(Level)
    return sorted(found, key=lambda each: order.index(each.level))


class _Typed:
    """The commands for a snapshot, with the options that it was made with."""

    def __init__(self, snapshot: Snapshot, command: str) -> None:
        self._command = command
        self._alias = snapshot.alias
        self.policy = snapshot.policy

    def reaper(
        self,
        *,
        group: Mapping[Field, str | None] | None = None,
        idle_for: timedelta | None = None,
        in_transaction_for: timedelta | None = None,
        more: Sequence[str] = (),
    ) -> str:
        """Return the dry run that shows what idle_reaper would end, of *group* alone if given."""
        policy = self.policy
        idle_for = idle_for or policy.idle_for
        options = ["--dry-run", "--idle-for", as_option(idle_for)]
        held = in_transaction_for or policy.idle_in_transaction_for
        options += ["--idle-in-transaction-for", as_option(held)] if held else []
        user, database = (group or {}).get(Field.USER), (group or {}).get(Field.DATABASE)
        application = (group or {}).get(Field.APPLICATION)
        is_named = not user or user in (policy.users or (policy.login_role,))
        for name in policy.users if is_named or ANY_USER in policy.users else (str(user),):
            options += ["--user", name]
        if policy.any_database or (database and database != policy.database):
            options.append("--any-database")
        for name in [literal_glob(application)] if application else policy.applications:
            options += ["--application-name", name]
        for flag, values in (
            ("--client", policy.clients),
            ("--exclude-user", policy.excluded_users),
            ("--exclude-application-name", policy.excluded_applications),
            ("--exclude-client", policy.excluded_clients),
        ):
            options += [part for value in values for part in (flag, str(value))]
        options += ["--keep", str(policy.keep)] if policy.keep else []
        if self._alias != "default":
            options = ["--database", self._alias, *options]
        return " ".join([self._command, *(shlex.quote(printable(each)) for each in options), *more])


def as_option(value: timedelta) -> str:
    """Return *value* as options take a duration: ``90s``, ``10m``, ``2h``."""
    seconds = value.total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.10g}s"


def literal_glob(name: str) -> str:
    """Return the glob that matches *name* alone."""
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


def _slots(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    assert snapshot.slots  # noqa: S101 - meanings() has looked
    slots = snapshot.slots
    bound = "" if slots.exact else "Up to "
    limit = {
        "server": "the server's slots",
        "role": "the slots that the role's CONNECTION LIMIT allows",
        "database": "the slots that the database's CONNECTION LIMIT allows",
    }[snapshot.slots_limit]
    freed = snapshot.would_end
    ends = (
        f"idle_reaper would end {_count(freed, 'session')} now."
        if freed
        else "idle_reaper would end none with these options."
    )
    if slots.used >= slots.total:
        yield Meaning(
            kind="slots_full",
            level=Level.ALARM,
            sentence=(f"All {slots.total} of {limit} are taken, so new connections fail. {ends}"),
            command=typed.reaper(idle_for=None if freed else _shorter(snapshot)),
        )
    elif slots.percent >= NEARLY_FULL:
        yield Meaning(
            kind="slots_short",
            level=Level.WARNING,
            sentence=(
                f"{bound}{slots.used} of {slots.total} of {limit} are taken; connections fail"
                f" after {slots.total - slots.used} more. {ends}"
            ),
            command=typed.reaper(idle_for=None if freed else _shorter(snapshot)),
        )
    elif freed:
        yield Meaning(
            kind="would_end",
            level=Level.NOTE,
            sentence=ends,
            command=typed.reaper(),
        )


def _role_limits(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    roles = snapshot.limits.roles if snapshot.limits else {}
    for role, limit in sorted(roles.items()):
        used = (snapshot.held_by_role or {}).get(role, 0)
        is_told = snapshot.slots_limit == "role" and role in (
            snapshot.policy.users or (snapshot.policy.login_role,)
        )
        if used and 100 * used >= NEARLY_FULL * limit and not is_told:
            yield Meaning(
                kind="role_limit",
                level=Level.WARNING,
                sentence=(
                    f"Role {printable(role)} has {used} of the {limit} sessions that its"
                    " CONNECTION LIMIT allows."
                ),
                command=typed.reaper(group={Field.USER: role}),
            )


def _leaks(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    by = (Field.APPLICATION, Field.USER, Field.DATABASE)
    for group in grouped(filter(looks_leaked, snapshot.rows), by):
        rows, ended = _leaked_together(group)
        if len(rows) < LEAKED_SESSIONS:
            continue
        rests = sorted(each.session.in_state_for for each in rows)
        used = max(each.used_for or timedelta(0) for each in rows)
        used = max(used, timedelta(seconds=0.1))  # the shortest time that is shown
        yield Meaning(
            kind="leak",
            level=Level.ALARM,
            sentence=(
                f"{len(rows)} sessions of {_owner(group.key)} look like a leak: each was used for"
                f" at most {_duration(used)} and is idle for {_span(rests[0], rests[-1])};"
                f" {ended}."
            ),
            command=typed.reaper(group=group.key, idle_for=_threshold(rests, typed.policy)),
        )


def _leaked_together(group: Group) -> tuple[Sequence[Row], str]:
    """Return the sessions of *group* that are one leak, and the statements that they ended with."""
    last, count = group.lasts[0]
    if count >= ONE_STATEMENT * len(group):
        same = "each" if count == len(group) else f"{count} of them"
        return group.rows, f"{same} ended with {last}"
    often = {last: count for last, count in group.lasts if count >= LEAKED_SESSIONS}
    rows = [each for each in group.rows if each.last in often]
    if len(rows) < SEVERAL_STATEMENTS:
        return [], ""
    (last, count), *others = often.items()
    told = [f"{count} of them ended with {last}"]
    told += [f"{count} with {last}" for last, count in others[:2]]
    rest = sum(count for _, count in others[2:])
    return rows, ", ".join(told) + (f" and {rest} with others" if rest else "")


def looks_leaked(row: Row) -> bool:
    """Return whether the session was used for one request, and not again since."""
    session = row.session
    return (
        session.state is State.IDLE
        and session.backend_type == CLIENT_BACKEND
        and session.application_name not in OWN_APPLICATIONS
        and row.used_for is not None
        and row.used_for <= ONE_REQUEST
        and session.in_state_for >= QUIET_FOR
        and not row.is_unused
        and row.last.partition(" ")[0] not in ("", "LISTEN", "FETCH", "DECLARE")
        and not session.holds_advisory_lock
    )


def _kept(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    rows = [each for each in snapshot.rows if _is_used_again(each)]
    for group in grouped(rows, (Field.APPLICATION, Field.USER, Field.DATABASE)):
        rests = [each.session.in_state_for for each in group.rows]
        if len(group) < KEPT_SESSIONS or max(rests) > typed.policy.idle_for:
            continue
        oldest = max(each.used_for or timedelta(0) for each in group.rows)
        yield Meaning(
            kind="kept",
            level=Level.NOTE,
            sentence=(
                f"{len(group)} sessions of {_owner(group.key)} are kept and used again, by"
                f" CONN_MAX_AGE or a pool: the oldest for {_duration(oldest)}, and none is idle for"
                f" more than {_duration(max(rests))}. This is no leak."
            ),
        )


def _is_used_again(row: Row) -> bool:
    return (
        row.session.state in (State.IDLE, State.ACTIVE)
        and row.session.backend_type == CLIENT_BACKEND
        and row.session.application_name not in OWN_APPLICATIONS
        and row.used_for is not None
        and row.used_for > ONE_REQUEST
    )


def _in_transaction(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    rows = [
        each
        for each in snapshot.rows
        if is_in_transaction(each) and each.session.in_state_for >= HELD_FOR
    ]
    for group in grouped(rows, (Field.APPLICATION, Field.USER, Field.DATABASE)):
        longest = group.longest or HELD_FOR
        victims = waiting_for(snapshot.rows, {each.session.pid for each in group.rows})
        pids = sorted(each.session.pid for each in group.rows)
        blocks = ""
        if victims:
            names = sorted({printable(each.session.application or "-") for each in victims})
            blocks = (
                f" Pid {_list(pids)} {'blocks' if len(pids) == 1 else 'block'}"
                f" {_count(len(victims), 'session')} of {_list(names)}, waiting for up to"
                f" {_duration(max(each.session.in_state_for for each in victims))}."
            )
        yield Meaning(
            kind="blocks" if victims else "idle_in_transaction",
            level=Level.ALARM if victims else Level.WARNING,
            sentence=(
                f"{_count(len(group), 'session')} of {_owner(group.key)}"
                f" {'is' if len(group) == 1 else 'are'} idle in a transaction"
                f"{'' if len(group) == 1 else ', the longest'} for {_duration(longest)}, and"
                f" {'keeps' if len(group) == 1 else 'keep'} locks and old rows.{blocks}"
            ),
            command=typed.reaper(
                group=group.key,
                in_transaction_for=_threshold([longest], typed.policy),
            ),
        )


def waiting_for(rows: Iterable[Row], pids: set[int]) -> list[Row]:
    """Return those of *rows* that wait for one of *pids*, directly or behind another session."""
    waiting = [each for each in rows if each.blocked_by]
    found: dict[int, Row] = {}
    while more := [
        each
        for each in waiting
        if each.session.pid not in found
        and each.session.pid not in pids
        and any(pid in pids or pid in found for pid in each.blocked_by)
    ]:
        found.update({each.session.pid: each for each in more})
    return list(found.values())


def _hidden(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    role = printable(snapshot.policy.login_role)
    if snapshot.hidden:
        yield Meaning(
            kind="hidden",
            level=Level.WARNING,
            sentence=(
                f"The server hides {snapshot.hidden} of {_count(len(snapshot.rows), 'session')}"
                f" from role {role}: state, client and last statement are unknown for them."
            ),
            command="" if snapshot.refusal else snapshot.grant,
        )
    if snapshot.refusal:
        yield Meaning(
            kind="refuses",
            level=Level.WARNING,
            sentence=(
                f"idle_reaper would refuse to run with these options (exit code 4): role {role}"
                f" {snapshot.refusal} of the sessions in scope. Let an administrator run:"
            ),
            command=snapshot.grant,
        )


def _out_of_scope(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    policy = snapshot.policy
    others = [
        each
        for each in snapshot.rows
        if each.session.application_name not in OWN_APPLICATIONS and each.session.user
    ]
    if others and not any(policy.covers(each.session) for each in others):
        largest = grouped(others, (Field.USER, Field.DATABASE))[0]
        yield Meaning(
            kind="out_of_scope",
            level=Level.NOTE,
            sentence=(
                "idle_reaper would judge none of these sessions with these options; most are those"
                f" of role {printable(largest.key[Field.USER] or '-')} in database"
                f" {printable(largest.key[Field.DATABASE] or '-')}."
            ),
            command=typed.reaper(group=largest.key),
        )


def _superusers(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    policy = snapshot.policy
    rows = [
        each
        for each in snapshot.rows
        if each.session.is_superuser
        and each.session.backend_type in (CLIENT_BACKEND, None)
        and each.session.application_name not in OWN_APPLICATIONS
        and not matches(each.session, policy.protected_applications)
    ]
    for group in grouped(rows, (Field.USER,)):
        if len(group) < KEPT_SESSIONS:
            continue
        role = group.key[Field.USER] or ""
        names = sorted({printable(each.session.application or "-") for each in group.rows})
        yield Meaning(
            kind="superuser",
            level=Level.WARNING,
            sentence=(
                f"{len(group)} sessions of {_list(names)} logged in as the superuser"
                f" {printable(role)}: no limit binds it, and it can take the slots that are"
                " reserved for administrators."
            ),
            command="conn-guard check W307",
        )


def _poolers(snapshot: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    rows = [
        each
        for each in snapshot.rows
        if each.session.client and each.session.application_name not in OWN_APPLICATIONS
    ]
    for group in grouped(rows, (Field.CLIENT,)):
        client = group.key[Field.CLIENT] or ""
        pairs = {(each.session.user, each.session.database) for each in group.rows}
        names = {each.session.application for each in group.rows}
        is_named = any(fnmatchcase(name, pooler) for name in names for pooler in POOLERS)
        is_local = client == "::1" or client.startswith("127.")
        is_excluded = any(
            client == str(each.network_address) for each in typed.policy.excluded_clients
        )
        if (is_named or (len(pairs) >= POOLED_ROLES and not is_local)) and not is_excluded:
            yield Meaning(
                kind="pooler",
                level=Level.NOTE,
                sentence=(
                    f"{_count(len(group), 'session')} of"
                    f" {_count(len(pairs), 'pair')} of role and database"
                    f" {'comes' if len(group) == 1 else 'come'} from {client}. If a pooler runs"
                    " there, let idle_reaper spare its sessions."
                ),
                command=typed.reaper(more=["--exclude-client", client]),
            )


def _growth(snapshot: Snapshot, earlier: Snapshot, typed: _Typed) -> Iterator[Meaning]:
    if not (snapshot.slots and earlier.slots and snapshot.observed_at and earlier.observed_at):
        return
    seconds = (snapshot.observed_at - earlier.observed_at).total_seconds()
    if seconds <= 0:
        return
    more = snapshot.slots.used - earlier.slots.used
    if more <= 0:
        words = f"fell by {-more}" if more else "stayed the same"
        yield Meaning(
            kind="growth",
            level=Level.NOTE,
            sentence=f"The number of taken slots {words} in {duration(seconds)}.",
        )
        return
    by = (Field.APPLICATION, Field.USER, Field.DATABASE)
    before = Counter({tuple(each.key.values()): len(each) for each in grouped(earlier.rows, by)})
    grown = max(
        grouped(snapshot.rows, by), key=lambda each: len(each) - before[tuple(each.key.values())]
    )
    left = max(0, snapshot.slots.total - snapshot.slots.used)
    full = (
        f" At this rate all {snapshot.slots.total} slots are taken in"
        f" {duration(seconds * left / more)}."
        if left
        else ""
    )
    yield Meaning(
        kind="growth",
        level=Level.ALARM if not left or seconds * left / more < 3600 else Level.WARNING,
        sentence=(
            f"The number of taken slots grew by {more} in {duration(seconds)},"
            f" {60 * more / seconds:.0f} a minute, most of them by {_owner(grown.key)}.{full}"
        ),
        command=typed.reaper(group=grown.key),
    )


_RULES: tuple[Callable[[Snapshot, _Typed], Iterable[Meaning]], ...] = (
    _slots,
    _in_transaction,
    _leaks,
    _role_limits,
    _hidden,
    _superusers,
    _out_of_scope,
    _poolers,
    _kept,
)


def _threshold(rests: Sequence[timedelta], policy: Policy) -> timedelta:
    """Return the longest usual threshold that most of the idle times *rests* are above."""
    enough = 0.8 * len(rests)
    usual = [policy.idle_for, *SHORTER.values()]
    fit = [each for each in usual if sum(rest >= each for rest in rests) >= enough]
    return max((each for each in fit if each <= policy.idle_for), default=min(SHORTER.values()))


def _shorter(snapshot: Snapshot) -> timedelta:
    idle = [
        each.session.in_state_for
        for each in snapshot.rows
        if each.session.is_idle and snapshot.policy.covers(each.session)
    ]
    return _threshold(idle, snapshot.policy) if idle else snapshot.policy.idle_for


def _owner(key: Mapping[Field, str | None]) -> str:
    user, database = (printable(key.get(each) or "-") for each in (Field.USER, Field.DATABASE))
    name = printable(key.get(Field.APPLICATION) or "(no application_name)")
    return f"{name} (role {user}, database {database})"


def _duration(value: timedelta) -> str:
    return duration(max(0.0, value.total_seconds()))


def _span(shortest: timedelta, longest: timedelta) -> str:
    ends = (_duration(shortest), _duration(longest))
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list(values: Sequence[object], most: int = 3) -> str:
    shown = ", ".join(str(each) for each in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
