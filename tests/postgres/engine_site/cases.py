"""Django's promises to its test cases, which the engine keeps."""

from __future__ import annotations

import threading
import urllib.request

from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase


def rest():
    """Rest for much longer than the idle limit that the settings may have."""
    threading.Event().wait(0.4)


class InOneTransaction(TestCase):
    databases = frozenset({"default", "other"})

    @classmethod
    def setUpTestData(cls):
        Group.objects.create(name="of the class")
        Group.objects.using("other").create(name="of the class")

    def test_what_the_class_made_is_there_after_a_rest(self):
        rest()
        assert [group.name for group in Group.objects.all()] == ["of the class"]
        assert Group.objects.using("other").count() == 1
        assert self.client.get("/").content == b"2"
        rest()
        assert self.client.get("/").content == b"3"

    def test_what_another_test_made_is_gone(self):
        assert Group.objects.count() == 1

    async def test_the_asynchronous_client(self):
        response = await self.async_client.get("/")
        assert response.content == b"2"
        await sync_to_async(rest)()
        assert await Group.objects.acount() == 2

    def test_on_commit(self):
        called = []
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: called.append(1))
            rest()
        assert called == [1]


class WithoutTransaction(TransactionTestCase):
    def test_a_rest_and_the_client(self):
        Group.objects.create(name="one")
        rest()
        assert self.client.get("/").content == b"2"
        rest()
        assert Group.objects.count() == 2

    def test_a_temporary_table_outlives_a_request_of_the_client(self):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE kept AS SELECT 1 AS n")
        self.client.get("/")
        rest()
        with connection.cursor() as cursor:
            cursor.execute("TABLE kept")
            assert cursor.fetchall() == [(1,)]
            cursor.execute("DROP TABLE kept")

    async def test_the_asynchronous_client(self):
        assert (await self.async_client.get("/")).content == b"1"
        await sync_to_async(rest)()
        assert (await self.async_client.get("/")).content == b"2"

    def test_a_thread_of_its_own(self):
        thread = threading.Thread(target=lambda: Group.objects.create(name="of the thread"))
        thread.start()
        thread.join()
        assert Group.objects.count() == 1


class WithALiveServer(LiveServerTestCase):
    def test_what_the_server_writes_is_there(self):
        for wanted in (b"1", b"2"):
            with urllib.request.urlopen(self.live_server_url, timeout=20) as response:
                assert response.read() == wanted
            rest()
        assert Group.objects.count() == 2
        connections.close_all()
