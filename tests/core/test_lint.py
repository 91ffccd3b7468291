"""The static look names code that queries in a thread or task and closes no connection."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from conn_guard.lint.findings import Finding, find

IMPORTS = """
import asyncio, functools, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import copy_context
from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.db import close_old_connections, connection, connections, models, transaction
from django.shortcuts import get_object_or_404
from conn_guard import closing_connections
class Book(models.Model): ...
def work(): return Book.objects.count()
async def awork(): return await Book.objects.acount()
"""


def look(folder: Path, files: dict[str, str]) -> list[Finding]:
    """Return the findings about *files*, written to *folder*."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    return find([folder]).findings


NAMED = {
    "a thread": "threading.Thread(target=work).start()  # thread",
    "a thread by position": "threading.Thread(None, work).start()  # thread",
    "a timer": "threading.Timer(5, work).start()  # thread",
    "a lambda": "threading.Thread(target=lambda: work()).start()  # thread",
    "a partial": "threading.Thread(target=functools.partial(work)).start()  # thread",
    "a thread class": """
        class Worker(threading.Thread):
            def run(self):  # thread
                self.step()
            def step(self):
                work()
        """,
    "a method": """
        class View:
            def get(self, request):
                threading.Thread(target=self.step).start()  # thread
            def step(self):
                work()
        """,
    "an inherited method": """
        class Base:
            def step(self):
                work()
        class View(Base):
            def get(self, request):
                threading.Thread(target=self.step).start()  # thread
        """,
    "a nested function": """
        def view(request):
            def step():
                work()
            threading.Thread(target=step).start()  # thread
        """,
    "an executor": """
        with ThreadPoolExecutor(4) as pool:
            pool.submit(work)  # executor
            pool.map(work, [])  # executor
        """,
    "an executor of an instance": """
        class View:
            def __init__(self):
                self.pool = ThreadPoolExecutor()
            def get(self, request):
                self.pool.submit(copy_context().run, work)  # executor
        """,
    "to_thread": """
        async def view(request):
            await asyncio.to_thread(work)  # to-thread
        """,
    "run_in_executor": """
        async def view(request):
            await asyncio.get_running_loop().run_in_executor(None, work)  # run-in-executor
        """,
    "sync_to_async": "later = sync_to_async(work, thread_sensitive=False)  # sync-to-async",
    "a decorator": """
        @sync_to_async(thread_sensitive=False)  # sync-to-async
        def step():
            work()
        """,
    "a forgotten task": """
        async def view(request):
            asyncio.create_task(awork())  # task
        """,
    "a forgotten task in a set": """
        async def view(request):
            task = asyncio.ensure_future(awork())  # task
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        """,
    "a task of a loop": """
        async def view(request):
            asyncio.get_running_loop().create_task(sync_to_async(work)())  # task
        """,
    "async code run by a thread": """
        def step():
            async_to_sync(awork)()
        threading.Thread(target=step).start()  # thread
        """,
}

QUERIES = {
    "a cursor": "connection.cursor()",
    "a cursor of an alias": "connections['other'].cursor()",
    "atomic": "with transaction.atomic(): pass",
    "a shortcut": "get_object_or_404(Book, pk=1)",
    "the user model": "get_user_model().objects.first()",
    "a model's default manager": "Book._default_manager.all()",
    "a new instance": "book = Book(); book.save()",
    "a refresh": "given.refresh_from_db()",
    "a bulk": "given.books.bulk_create([])",
    "a model of a base that isn't here": "Elsewhere.objects.get()",
}

CLEAN = {
    "an end in the code": """
        def step():
            try:
                work()
            finally:
                connections.close_all()
        threading.Thread(target=step).start()
        """,
    "an end in a call": """
        def cleanup():
            close_old_connections()
        def step():
            work()
            cleanup()
        threading.Thread(target=step).start()
        """,
    "a close": """
        def step():
            work()
            connection.close()
        threading.Thread(target=step).start()
        """,
    "the decorator": """
        @closing_connections
        def step():
            work()
        threading.Thread(target=step).start()
        """,
    "the block": """
        def step():
            with closing_connections():
                work()
        threading.Thread(target=step).start()
        """,
    "a project's own decorator": """
        @close_db_connection_after
        def step():
            work()
        threading.Thread(target=step).start()
        """,
    "code that doesn't query": """
        def step():
            bucket.objects.all(); print(); given.save()
        threading.Thread(target=step).start()
        """,
    "documents": """
        import mongoengine
        class Note(mongoengine.Document): ...
        def step():
            Note.objects.first()
        threading.Thread(target=step).start()
        """,
    "a call before the thread": "threading.Thread(target=work()).start()",
    "an unknown target": "threading.Thread(target=unknown.work).start()",
    "a loop variable of the same name": """
        def view(request):
            for work in steps:
                threading.Thread(target=work).start()
        """,
    "processes": """
        with ProcessPoolExecutor() as pool:
            pool.submit(work)
        asyncio.get_event_loop().run_in_executor(pool, work)
        """,
    "another submit": "form.submit(work)",
    "the thread of the request": """
        async def view(request):
            await sync_to_async(work)()
        """,
    "a task that is awaited": """
        async def view(request):
            await asyncio.create_task(awork())
            tasks = [asyncio.create_task(awork())]
            await asyncio.gather(*tasks)
        """,
    "a task that is kept": """
        async def view(request):
            self.task = asyncio.create_task(awork())
            task = asyncio.create_task(awork())
            tasks["one"] = task
        """,
    "a queryset that a coroutine only builds": """
        async def step():
            return Book.objects.all()
        async def view(request):
            asyncio.create_task(step())
        """,
    "a query in a coroutine, which Django refuses": """
        async def step():
            work()
            Book.objects.count()
        async def view(request):
            asyncio.create_task(step())
        """,
    "channels' wrapper, which closes": """
        @database_sync_to_async
        def step():
            work()
        async def run():
            await step()
            await database_sync_to_async(work)()
        async def view(request):
            asyncio.create_task(run())
        """,
    "a comment": "threading.Thread(target=work).start()  # conn_guard: ignore",
    "names that stand for themselves": """
        one = two
        two = one
        class One(Two): ...
        class Two(One):
            def run(self): ...
        threading.Thread(target=one).start()
        threading.Thread(target=Two().go).start()
        """,
}


def expected(code: str) -> set[tuple[int, str]]:
    lines = enumerate(code.splitlines(), start=1)
    found = ((number, re.search(r"  # ([a-z-]+)$", line)) for number, line in lines)
    return {(number, match[1]) for number, match in found if match}


@pytest.mark.parametrize("code", NAMED.values(), ids=NAMED)
def test_code_that_queries_elsewhere_is_named(tmp_path, code):
    code = IMPORTS + dedent(code)
    found = look(tmp_path, {"views.py": code})
    assert {(each.line, each.slug) for each in found} == expected(code)
    assert found


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_each_way_to_query_is_seen(tmp_path, query):
    code = f"{IMPORTS}def step(given):\n    {query}\nthreading.Thread(target=step).start()\n"
    (finding,) = look(tmp_path, {"views.py": code})
    assert finding.query_line == finding.line - 1


@pytest.mark.parametrize("code", CLEAN.values(), ids=CLEAN)
def test_code_that_closes_or_does_not_query_elsewhere_is_not_named(tmp_path, code):
    assert look(tmp_path, {"views.py": IMPORTS + dedent(code)}) == []


def test_a_finding_says_where_it_queries_and_what_to_write(tmp_path):
    (finding,) = look(
        tmp_path,
        {
            "shop/__init__.py": "",
            "shop/models.py": "from django.db import models\nclass Book(models.Model): ...\n",
            "shop/jobs.py": """
                from . import models

                def count():
                    return models.Book.objects.count()
                """,
            "shop/views.py": """
                import threading
                from shop.jobs import count

                def view(request):
                    threading.Thread(target=count).start()
                """,
        },
    )
    assert (finding.path, finding.line, finding.column) == (str(tmp_path / "shop/views.py"), 6, 5)
    assert (finding.query_path, finding.query_line) == (str(tmp_path / "shop/jobs.py"), 5)
    assert finding.message == (
        f"A thread runs count(), which queries at {tmp_path / 'shop/jobs.py'}:5 and closes no"
        " connection."
    )
    assert finding.hint == "Decorate count() with @conn_guard.closing_connections."


def test_a_lambda_can_not_be_decorated(tmp_path):
    code = f"{IMPORTS}threading.Thread(target=lambda: work())\n"
    (finding,) = look(tmp_path, {"views.py": code})
    assert finding.hint == (
        "Replace the lambda by a function, decorated with @conn_guard.closing_connections."
    )


@pytest.mark.parametrize(
    "import_it",
    [
        "from app.jobs import work",
        "from .jobs import work",
        "from . import jobs; work = jobs.work",
        "import app.jobs; work = app.jobs.work",
        "import app.jobs as jobs; work = jobs.work",
        "from app import work",
    ],
)
def test_imports_are_followed(tmp_path, import_it):
    code = "from django.db import connection\ndef work(): connection.cursor()\n"
    views = f"from threading import Thread\n{import_it}\nThread(target=work)\n"
    package = "from .jobs import work"
    found = look(
        tmp_path,
        {"src/app/jobs.py": code, "src/app/__init__.py": package, "src/app/views.py": views},
    )
    assert [(each.line, each.slug) for each in found] == [(3, "thread")]


def test_a_file_named_like_a_standard_module_is_not_taken_for_it(tmp_path):
    code = f"{IMPORTS}threading.Thread(target=work)\n"
    files = {"leave/threading.py": "class Thread: ...", "leave/views.py": code}
    assert len(look(tmp_path, files)) == 1


def test_a_module_of_a_package_is_not_taken_for_one_outside(tmp_path):
    views = "from threading import Thread\nfrom jobs import work\nThread(target=work)\n"
    files = {"app/__init__.py": "", "app/jobs.py": IMPORTS, "app/views.py": views}
    assert look(tmp_path, files) == []


def test_calls_are_followed_a_few_levels_deep(tmp_path):
    steps = [f"def step{n}(): step{n + 1}()" for n in range(6)]
    code = "\n".join([IMPORTS, *steps, "def step6(): work()", "threading.Thread(target=step3)"])
    assert len(look(tmp_path, {"views.py": code})) == 1
    assert look(tmp_path, {"views.py": code.replace("target=step3", "target=step0")}) == []


def test_a_file_that_can_not_be_read_is_said_and_the_others_are_looked_at(tmp_path):
    code = f"{IMPORTS}threading.Thread(target=work)\nescape = '\\d'\n"
    (tmp_path / "views.py").write_text(code)
    (tmp_path / "old.py").write_text("print 'Thread'\n")
    (tmp_path / "binary.py").write_bytes(b"Thread\0\xff")
    (tmp_path / "deep.py").write_text(f"import threading\nthreading.Thread{'.a()' * 900}\n")
    report = find([tmp_path])
    assert len(report.findings) == 1
    assert report.files == 4
    assert {Path(path).name for path in report.unreadable} == {"old.py", "binary.py", "deep.py"}


def test_environments_and_hidden_folders_are_left_out(tmp_path):
    code = f"{IMPORTS}threading.Thread(target=work)\n"
    found = look(tmp_path, {f"{each}/views.py": code for each in ("venv", ".tox", "shop")})
    assert [Path(each.path).parent.name for each in found] == ["shop"]
