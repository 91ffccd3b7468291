"""Tests that leave nothing open, though each looks as if it did."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import django.test
import pytest
from django.conf import settings
from django.db import connection, connections
from opening import KEPT, in_living_thread, in_thread, query

from conn_guard import closing_connections


@pytest.fixture(scope="session")
def session_pool(django_db_setup, django_db_blocker):
    with ThreadPoolExecutor(1) as pool, django_db_blocker.unblock():
        pool.submit(query).result()
        yield pool
        pool.submit(connections.close_all).result()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool
        pool.submit(connections.close_all).result()


@pytest.fixture(scope="session")
def clients(live_server):
    """Clients that stay until the server is about to stop."""
    clients = []
    yield clients
    for client in clients:
        client.close()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(5)


def test_no_database():
    pass


@pytest.mark.django_db
def test_the_tests_own_connection():
    query()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_the_tests_own_connections():
    query()
    query("lasting")


def test_the_fixture_db(db):
    query()


def test_the_fixture_transactional_db(transactional_db):
    query()
    in_thread(closing_connections(query))


def test_the_tests_own_connection_without_pytest_djangos_care(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        query()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_thread_that_closes():
    in_thread(closing_connections(query))
    in_living_thread(closing_connections(query))


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_thread_that_closes_a_little_later():
    opened = threading.Event()

    @closing_connections
    def work():
        query()
        opened.set()
        time.sleep(0.5)

    threading.Thread(target=work).start()
    opened.wait()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_fixture_that_closes(pool):
    pool.submit(query).result()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_fixture_of_the_session(session_pool):
    session_pool.submit(query).result()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_connection_that_the_test_lends():
    lent = connections["default"]
    lent.inc_thread_sharing()

    def work():
        connections["default"] = lent
        lent.close()
        query()

    in_thread(work)
    lent.dec_thread_sharing()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_connection_lent_for_good():
    def work():
        KEPT.append(query())
        KEPT[-1].inc_thread_sharing()

    in_thread(work)


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_session_that_the_server_ended():
    def work():
        return query().connection.info.backend_pid

    pid = in_living_thread(work)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_driver_connection_closed_past_django():
    def work():
        KEPT.append(query())
        KEPT[-1].connection.close()

    in_thread(work)


@pytest.mark.django_db(databases="__all__")
def test_a_database_in_memory():
    in_living_thread(query, "lite")


@pytest.mark.skipif(not settings.HAS_POOL, reason="needs Django 5.1 and psycopg_pool")
@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_connection_given_back_to_its_pool():
    in_living_thread(closing_connections(query), "pooled")


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("alias", ["default", "lasting"])
def test_a_live_server_whose_client_stays(live_server, clients, alias):
    client = http.client.HTTPConnection(live_server.thread.host, live_server.thread.port)
    client.request("GET", f"/{alias}/", headers={"Connection": "keep-alive"})
    assert client.getresponse().read() == b"queried"
    clients.append(client)


class Case(django.test.TestCase):
    def test_a_method_of_a_test_case(self):
        query()


class TransactionCase(django.test.TransactionTestCase):
    def test_a_method_of_a_transaction_test_case(self):
        query()


class LiveServerCase(django.test.LiveServerTestCase):
    def test_a_method_of_a_live_server_test_case(self):
        client = http.client.HTTPConnection(self.server_thread.host, self.server_thread.port)
        client.request("GET", "/default/")
        assert client.getresponse().read() == b"queried"
        client.close()


class AsyncCase(django.test.TestCase):
    async def test_the_async_client(self):
        response = await self.async_client.get("/default/")
        assert response.content == b"queried"
