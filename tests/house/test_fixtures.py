"""The fixtures that other tests build on: second sessions, a pooler and Redis."""

from __future__ import annotations

import socket

import pytest

from tests.support.polling import until


@pytest.mark.django_db(databases=["default", "other"])
def test_a_second_session_is_found_by_its_own_name(session_factory, application_name, ask):
    one, two = session_factory(), session_factory("other")
    found = ask(
        "SELECT pid, datname FROM pg_stat_activity WHERE application_name = %s", [application_name]
    )
    assert len({name for _, name in found}) == 2
    assert {pid for pid, _ in found} == {one.pid, two.pid}


def test_until_fails_with_the_last_answer():
    with pytest.raises(AssertionError, match="was 0"):
        until(lambda: 0, timeout=0.01)


def test_pgbouncer_stands_between_in_the_mode_asked_for(pgbouncer, session_factory):
    pooler = pgbouncer("transaction", default_pool_size=1)
    through = [session_factory(host=pooler.host, port=pooler.port) for _ in range(3)]
    assert len({session.execute("SELECT pg_backend_pid()")[0] for session in through}) == 1


def test_redis_answers(redis_server):
    port = int(redis_server.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(7) == b"+PONG\r\n"
