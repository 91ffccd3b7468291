"""The workers of frameworks, real ones: with the line that the page gives for each, no task leaves
a session behind, and every next task works.
"""

from __future__ import annotations

import pytest

from tests.postgres.framework_site.workers import FRAMEWORKS, worker
from tests.support.polling import until

JOBS = ["query", "fail", "start_thread", "copies", "begin"]
# Where a task may be interrupted by a limit of time, or runs an event loop of its own.
SCOPED = {"Huey": ["run_asyncio", "enter_atomic"], "Dramatiq": ["run_asyncio", "enter_atomic"]}


@pytest.fixture
def start(ask, request, tmp_path_factory):
    """Return a function that runs the worker of a framework, if the framework is installed."""

    def run(framework: str, **environment: str):
        for module in FRAMEWORKS[framework].needs:
            pytest.importorskip(module)
        if "redis" in FRAMEWORKS[framework].needs:
            environment["REDIS_URL"] = request.getfixturevalue("redis_server")
        return worker(framework, tmp_path_factory.mktemp("worker"), ask, **environment)

    return run


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_task_leaves_a_session(start, framework):
    jobs = [*JOBS, *SCOPED.get(framework, [])]
    if FRAMEWORKS[framework].coroutines:
        jobs.append("coroutine")
    with start(framework, CURE="line") as running:
        for job in jobs:
            assert ("raised" in running.perform(job)) == (job == "fail"), running.log()
            until(lambda: not running.sessions())
            assert "returned" in running.perform("query"), running.log()


@pytest.mark.parametrize("worker_type", ["process", "greenlet"])
def test_hueys_other_workers_leave_no_session_either(start, worker_type):
    pytest.importorskip("gevent")
    with start("Huey", CURE="line", HUEY_WORKER_TYPE=worker_type) as running:
        for job in ("copies", "enter_atomic", "query"):
            assert "returned" in running.perform(job), running.log()
            until(lambda: not running.sessions())


@pytest.mark.parametrize("framework", ["Huey", "Dramatiq"])
def test_without_the_line_a_worker_keeps_its_session_and_fails_for_good_once_it_is_ended(
    start, framework
):
    with start(framework, CURE="app") as running:
        backend = running.perform("query")["returned"]
        assert running.sessions() == [(backend, "idle")]
        running.end_sessions([backend])
        assert ["raised" in running.perform("query") for _ in range(2)] == [True, True]
