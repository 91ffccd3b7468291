"""Ways to open a connection, and references that keep it."""

import threading
from concurrent.futures import ThreadPoolExecutor

from django.db import connections

KEPT = []


def query(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    return connections[alias]


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def in_living_thread(function, *args):
    pool = ThreadPoolExecutor(1, thread_name_prefix="lives-on")
    KEPT.append(pool)
    return pool.submit(function, *args).result()
