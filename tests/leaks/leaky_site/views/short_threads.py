"""Views that query in threads that end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

from tests.leaks.leaky_site import control
from tests.leaks.leaky_site.views.base import ok, query, query_without_autocommit, view


@view
def thread(request):
    threading.Thread(target=control.later(query)).start()
    return ok()


@view
def timer(request):
    threading.Timer(0.05, control.later(query)).start()
    return ok()


@view
def two_aliases_in_thread(request):
    threading.Thread(target=control.later(lambda: (query(), query("second")))).start()
    return ok()


@view
def thread_pool(request):
    with ThreadPool(2) as pool:
        pool.map(lambda _: query(), range(2))
    return ok()


@view
def executor_per_request(request):
    with ThreadPoolExecutor(2) as executor:
        list(executor.map(lambda _: query(), range(2)))
    return ok()


@view
def thread_without_autocommit(request):
    threading.Thread(target=control.later(query_without_autocommit)).start()
    return ok()
