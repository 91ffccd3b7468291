"""Tests that leave something open."""

import asyncio
import gc
import unittest

import pytest
from asgiref.sync import sync_to_async
from django.db import ConnectionHandler, connection, connections
from opening import KEPT, in_living_thread, in_thread, query

# What nobody holds the garbage collector closes, now or after the test: here it comes too late.
gc.disable()

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture
def background():
    in_living_thread(query, "lasting")


def test_a_thread_that_lives_on():
    in_living_thread(query)


def test_a_thread_that_died():
    in_thread(query)


def test_a_wrapper_kept_from_a_thread_that_died():
    in_thread(lambda: KEPT.append(query()))


def test_a_driver_connection_kept_without_its_wrapper():
    def work():
        wrapper = query()
        KEPT.append(wrapper.connection)
        wrapper.connection = None

    in_thread(work)


def test_a_copy_in_the_tests_own_thread():
    copy = connection.copy()
    with copy.cursor() as cursor:
        cursor.execute("SELECT 1")


def test_a_handler_in_the_tests_own_thread():
    KEPT.append(ConnectionHandler(connections.settings))
    with KEPT[-1]["default"].cursor() as cursor:
        cursor.execute("SELECT 1")


def test_code_that_asgiref_takes_to_its_thread():
    asyncio.run(sync_to_async(query)())


def test_what_a_fixture_left(background):
    pass


def test_another_alias():
    in_living_thread(query, "lasting")


def test_another_engine():
    in_living_thread(query, "file")


class Case(unittest.TestCase):
    def test_a_method_of_a_class(self):
        in_living_thread(query)


def test_two():
    in_thread(query)
    in_thread(query, "lasting")


def test_the_second_of_two():
    def work():
        query()
        connection.close()
        query()

    in_thread(work)
