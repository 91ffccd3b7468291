"""The sentences of a report: each rule speaks where it has to and nowhere else."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import pytest

from conn_guard.sessions.census import Limits
from conn_guard.sessions.groups import Row
from conn_guard.sessions.meaning import Level, as_option, literal_glob, meanings
from conn_guard.sessions.policy import Policy, matches
from conn_guard.sessions.session import State
from tests.core.looks import MORNING, POLICY, leaked, look, row
from tests.support.rows import NOON, hidden, session

SECONDS = timedelta(seconds=1)
MINUTES = timedelta(minutes=1)
LEAK = [leaked(number) for number in range(8)]
KEPT = [
    row(pid=number, idle_for=number * SECONDS, backend_start=NOON - 60 * MINUTES)
    for number in range(1, 5)
]


def kinds(snapshot, earlier=None):
    return [each.kind for each in meanings(snapshot, earlier)]


def the(kind, snapshot, earlier=None):
    (found,) = [each for each in meanings(snapshot, earlier) if each.kind == kind]
    return found


def test_many_sessions_that_served_one_request_each_are_a_leak():
    leak = the("leak", look(*LEAK))
    assert leak.level is Level.ALARM
    assert leak.sentence == (
        "8 sessions of shop:server (role shop, database shop) look like a leak: each was used for"
        " at most 0.2s and is idle for 15m00s; each ended with SELECT auth_user."
    )
    assert leak.command == (
        "python manage.py idle_reaper --dry-run --idle-for 10m --application-name shop:server"
    )


@pytest.mark.parametrize(
    "rows",
    [
        LEAK[:4],
        [leaked(number, idle_for=9 * SECONDS) for number in range(8)],  # still in a request
        [leaked(number, last=f"SELECT t{number}") for number in range(8)],  # a pool's sessions
        [leaked(number, last=f"SELECT t{number % 5}") for number in range(20)],
        [leaked(number, last="LISTEN") for number in range(8)],
        [leaked(number, last="") for number in range(8)],
        [leaked(number, holds_advisory_lock=True) for number in range(8)],
        [leaked(number, state=State.ACTIVE) for number in range(8)],
        [leaked(number, application_name="conn_guard:idle_reaper") for number in range(8)],
        [leaked(number, application_name=f"shop{number}") for number in range(8)],
        KEPT,
    ],
)
def test_other_sessions_are_no_leak(rows):
    assert "leak" not in kinds(look(*rows))


def test_leaks_that_ended_with_several_statements_are_told_together():
    rows = [leaked(number, last=f"SELECT t{number % 4}") for number in range(24)]
    others = [leaked(100 + number, last=f"COMMIT {number}") for number in range(9)]
    assert the("leak", look(*rows, *others)).sentence.endswith(
        "; 6 of them ended with SELECT t0, 6 with SELECT t1, 6 with SELECT t2 and 6 with others."
    )
    assert the("leak", look(*rows, *others)).sentence.startswith("24 sessions of shop:server ")


def test_a_leak_is_told_beside_the_sessions_of_a_pool_with_its_name():
    pool = [leaked(number, last=f"SELECT t{number}") for number in range(20)]
    leak = [leaked(100 + number, last="SELECT auth_user") for number in range(15)]
    assert "15 sessions of shop:server" in the("leak", look(*pool, *leak)).sentence


def test_a_young_leak_is_told_with_a_threshold_that_ends_it():
    young = [leaked(number, idle_for=(90 + number) * SECONDS) for number in range(8)]
    assert "--idle-for 1m " in the("leak", look(*young)).command
    newborn = [leaked(number, idle_for=12 * SECONDS) for number in range(8)]
    assert "--idle-for 30s " in the("leak", look(*newborn)).command


def test_the_command_has_the_options_of_the_report_and_the_scope_of_the_group():
    policy = replace(
        POLICY,
        excluded_users=("dba",),
        excluded_applications=("shop:worker*",),
        excluded_clients=(ip_network("10.0.0.0/8"),),
        clients=(ip_network("192.168.0.0/16"),),
        idle_in_transaction_for=60 * MINUTES,
        keep=2,
    )
    other = [
        leaked(number, user="o'tool", database="x", application_name="a[1] *")
        for number in range(8)
    ]
    command = the("leak", look(*other, policy=policy, alias="replica")).command
    assert shlex.split(command)[3:] == [
        "--database", "replica", "--dry-run", "--idle-for", "10m",
        "--idle-in-transaction-for", "1h", "--user", "o'tool", "--any-database",
        "--application-name", "a[[]1] [*]", "--client", "192.168.0.0/16", "--exclude-user", "dba",
        "--exclude-application-name", "shop:worker*", "--exclude-client", "10.0.0.0/8",
        "--keep", "2",
    ]  # fmt: skip
    shops = replace(POLICY, users=("shop", "web"))
    assert shlex.split(the("leak", look(*other, policy=shops)).command)[6:8] == ["--user", "o'tool"]
    anyone = replace(POLICY, users=("*",))
    assert shlex.split(the("leak", look(*other, policy=anyone)).command)[6:8] == ["--user", "*"]
    named = replace(policy, users=("o'tool",), any_database=True, applications=("a*",))
    command = the("leak", look(*other, policy=named)).command
    assert command.count("--user") == command.count("--any-database") == 1
    assert "a*" not in shlex.split(command)


@pytest.mark.parametrize("name", ["shop:server", "a*b?[c]", "", "[!a]"])
def test_a_literal_glob_matches_its_name_alone(name):
    assert matches(session(application_name=name), [literal_glob(name)])
    assert not matches(session(application_name=f"{name}x"), [literal_glob(name)])


@pytest.mark.parametrize(
    ("seconds", "option"), [(90, "90s"), (600, "10m"), (7200, "2h"), (86400, "1d"), (0.5, "0.5s")]
)
def test_a_duration_is_written_as_options_take_it(seconds, option):
    assert as_option(timedelta(seconds=seconds)) == option


def test_sessions_that_are_used_again_are_kept_and_no_leak():
    kept = the("kept", look(*KEPT))
    assert kept.level is Level.NOTE
    assert "used again" in kept.sentence
    assert "59m59s" in kept.sentence
    assert not kept.command


def test_a_transaction_that_is_idle_is_told_with_the_sessions_it_blocks():
    holder = row(pid=1, state=State.IDLE_IN_TRANSACTION, idle_for=7 * MINUTES)
    first = row(pid=2, state=State.ACTIVE, blocked_by=(1,), application_name="billing")
    second = row(pid=3, state=State.ACTIVE, blocked_by=(2,), application_name="billing")
    other = row(pid=4, state=State.ACTIVE, blocked_by=(9,))
    circle = row(pid=5, state=State.ACTIVE, blocked_by=(6,))
    blocks = the("blocks", look(holder, first, second, other, circle))
    assert blocks.level is Level.ALARM
    assert "is idle in a transaction for 7m00s" in blocks.sentence
    assert "Pid 1 blocks 2 sessions of billing, waiting for up to 15m00s." in blocks.sentence
    assert "--idle-in-transaction-for 5m" in blocks.command
    alone = the("idle_in_transaction", look(holder, other))
    assert alone.level is Level.WARNING
    aborted = replace(holder.session, state=State.IDLE_IN_TRANSACTION_ABORTED, pid=8)
    assert "2 sessions" in the("idle_in_transaction", look(holder, Row(session=aborted))).sentence
    short = replace(holder.session, state_change=NOON - 2 * SECONDS)
    assert "idle_in_transaction" not in kinds(look(Row(session=short)))


@pytest.mark.parametrize(
    ("slots", "kind", "level"),
    [
        (8, "slots_full", Level.ALARM),
        (7, "slots_full", Level.ALARM),
        (10, "slots_short", Level.WARNING),
        (40, "would_end", Level.NOTE),
    ],
)
def test_the_slots_are_told_when_they_run_short_or_could_be_freed(slots, kind, level):
    found = the(kind, look(*LEAK, slots=slots))
    assert found.level is level
    assert "idle_reaper would end 8 sessions now." in found.sentence
    assert found.command == "python manage.py idle_reaper --dry-run --idle-for 10m"


def test_short_slots_that_no_session_is_due_for_are_told_with_a_shorter_threshold():
    young = [leaked(number, idle_for=2 * MINUTES) for number in range(8)]
    full = the("slots_full", look(*young, slots=8))
    assert "would end none" in full.sentence
    assert full.command.endswith("--idle-for 2m")
    busy = look(row(state=State.ACTIVE), slots=1)
    assert the("slots_full", busy).command.endswith("--idle-for 10m")


def test_an_upper_bound_and_another_limit_are_named():
    rows = [*LEAK, Row(session=hidden())]
    assert the("slots_short", look(*rows, slots=10)).sentence.startswith("Up to 9 of 10 ")
    role = Limits(server=97, database=None, roles={"shop": 8})
    assert "role's CONNECTION LIMIT" in the("slots_full", look(*LEAK, limits=role)).sentence
    assert "role_limit" not in kinds(look(*LEAK, limits=role))
    here = Limits(server=97, database=8, roles={})
    assert "database's CONNECTION LIMIT" in the("slots_full", look(*LEAK, limits=here)).sentence


def test_another_role_that_nears_its_limit_is_told():
    limits = Limits(server=97, database=None, roles={"billing": 10, "idle": 0, "far": 100})
    billing = [leaked(number, user="billing") for number in range(9)]
    found = the("role_limit", look(*billing, limits=limits))
    assert found.sentence == (
        "Role billing has 9 of the 10 sessions that its CONNECTION LIMIT allows."
    )
    assert "--user billing" in found.command


def test_hidden_sessions_are_told_with_the_grant():
    found = the("hidden", look(Row(session=hidden()), *KEPT, grant="GRANT x TO shop;"))
    assert found.sentence.startswith("The server hides 1 of 5 sessions from role shop")
    assert found.command == "GRANT x TO shop;"
    refused = look(Row(session=hidden()), refusal="may not see 1", grant="GRANT x TO shop;")
    assert the("refuses", refused).command == "GRANT x TO shop;"
    assert not the("hidden", refused).command


def test_a_scope_without_sessions_is_told_with_the_one_to_name():
    others = [row(user="billing", database="billing") for _ in range(3)]
    found = the("out_of_scope", look(*others))
    assert found.command.endswith("--idle-for 10m --user billing --any-database")
    assert "out_of_scope" not in kinds(look(*others, row()))
    assert "out_of_scope" not in kinds(look())


def test_an_application_that_is_a_superuser_is_told():
    roots = [leaked(number, user="postgres", is_superuser=True) for number in range(3)]
    found = the("superuser", look(*roots))
    # The statement would lock an administrator out who has no other superuser.
    assert found.command == "conn-guard check W307"
    admins = [leaked(n, is_superuser=True, application_name="psql") for n in range(3)]
    assert "superuser" not in kinds(look(*admins))
    assert "superuser" not in kinds(look(*roots[:2]))


def test_a_poolers_address_is_told():
    named = [leaked(1, application_name="pgbouncer", client="10.0.0.9")]
    found = the("pooler", look(*named))
    assert found.command.endswith("--exclude-client 10.0.0.9")
    many = [leaked(n, user=f"u{n}", client="10.0.0.9") for n in range(3)]
    assert "3 pairs of role and database come from 10.0.0.9" in the("pooler", look(*many)).sentence
    here = [leaked(n, user=f"u{n}", client="127.0.0.1") for n in range(3)]
    assert "pooler" not in kinds(look(*here))
    spared = replace(POLICY, excluded_clients=(ip_network("10.0.0.9"),))
    assert "pooler" not in kinds(look(*many, policy=spared))


def test_growth_is_told_with_the_time_until_the_slots_are_taken():
    before = look(*LEAK[:2], observed_at=NOON - 10 * SECONDS)
    grown = the("growth", look(*LEAK, slots=20), before)
    assert grown.level is Level.ALARM
    assert grown.sentence == (
        "The number of taken slots grew by 6 in 10s, 36 a minute, most of them by shop:server"
        " (role shop, database shop). At this rate all 20 slots are taken in 20s."
    )
    assert "--application-name shop:server" in grown.command
    assert "At this rate" not in the("growth", look(*LEAK, slots=8), before).sentence
    slow = look(*LEAK[:7], observed_at=NOON - 60 * MINUTES)
    assert the("growth", look(*LEAK), slow).level is Level.WARNING
    assert (
        "fell by 6"
        in the("growth", look(*LEAK[:2]), replace(look(*LEAK), observed_at=NOON - MINUTES)).sentence
    )
    assert (
        "stayed the same"
        in the("growth", look(*LEAK), replace(look(*LEAK), observed_at=NOON - MINUTES)).sentence
    )
    assert "growth" not in kinds(look(*LEAK), look(*LEAK))
    assert "growth" not in kinds(look(*LEAK), replace(before, slots=None))


def test_a_server_without_trouble_is_told_so():
    assert kinds(look(row(state=State.ACTIVE))) == ["fine"]
    assert meanings(replace(look(), slots=None)) == []


def test_the_most_urgent_comes_first():
    levels = [list(Level).index(each.level) for each in meanings(MORNING)]
    assert levels == sorted(levels)


def test_a_name_that_a_terminal_could_obey_is_escaped_in_every_sentence():
    bad = "shop\x1b[31m\u202e"
    rows = [
        leaked(n, application_name=bad, user=bad, database=bad, is_superuser=True) for n in range(8)
    ]
    rows.append(row(pid=1, state=State.IDLE_IN_TRANSACTION, application_name=bad, user=bad))
    rows.append(row(pid=2, state=State.ACTIVE, blocked_by=(1,), application_name=bad))
    limits = Limits(server=97, database=None, roles={bad: 9})
    policy = Policy(idle_for=10 * MINUTES, login_role=bad, users=(bad,))
    for snapshot in (
        look(*rows, limits=limits),
        look(*rows, policy=policy, slots=9, grant="x", refusal="may not see 1"),
    ):
        for each in meanings(snapshot, look(observed_at=NOON - MINUTES)):
            assert each.sentence.isprintable()
            assert each.command.isprintable()
