"""The engine's pages: their settings are valid, their code runs and their links have targets."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from conn_guard import conf
from conn_guard.engine import state, wrapper
from conn_guard.engine.statements import Leaves, read
from conn_guard.sessions import stamp

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
EXPLANATION = "explanation/the-engine.md"
REFERENCE = "reference/engine.md"


@pytest.fixture
def named():
    """The names that the reference's code blocks define, run one after the other."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / REFERENCE).read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_settings_are_settings(named):
    settings, problems = conf.parse(named["CONN_GUARD"])
    assert problems == []
    assert settings.report_held_for is not None
    import_module(named["DATABASES"]["default"]["ENGINE"] + ".base")


def test_the_code_runs(named, make_engine):
    assert named["listen"]() is None


def rows(page, *, under):
    """Return the cells of the first table on *page* under the heading *under*."""
    text = (DOCS / page).read_text().partition(f"# {under}\n")[2]
    table = re.search(r"^\|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]
    ]


@pytest.mark.parametrize(("engine", "base"), rows(REFERENCE, under="The engine's settings"))
def test_each_engine_is_a_subclass_of_what_stands_beside_it(engine, base):
    try:
        djangos = import_module(base.strip("`") + ".base").DatabaseWrapper
    except ImproperlyConfigured as missing:
        pytest.skip(f"GeoDjango's libraries are absent: {missing}")
    ours = import_module(engine.strip("`") + ".base").DatabaseWrapper
    assert issubclass(ours, djangos)
    assert issubclass(ours, wrapper.GuardedWrapper)


@pytest.mark.parametrize("key", ["ENGINE_IDLE_FOR", "STAMP_ORIGIN"])
def test_the_values_are_accepted_and_the_default_is_the_default(key):
    for value, _ in rows(REFERENCE, under=key):
        literal, _, what = value.partition(", ")
        if literal.startswith("`"):
            settings, problems = conf.parse({key: eval(literal.strip("`"))})
            assert problems == []
            assert (settings == conf.Settings()) is (what == "the default")


def test_the_limits_are_the_limits():
    assert (wrapper._AUTO_IDLE_S, wrapper._MIN_IDLE_S) == (60, 0.010)


def test_the_names_are_what_the_stamp_makes():
    text = (DOCS / REFERENCE).read_text()
    assert f"`{stamp.stamp('app', 4711)}`" in text
    assert f"`{stamp.stamp('app', 4711, 'shop.views.cart (cart)')}`" in text


def test_the_mark_is_the_mark():
    assert f"`{state.MARK_HELD_STATE}`" in (DOCS / EXPLANATION).read_text()


def test_the_statements_that_are_said_to_make_state_do():
    ran = [
        session
        for session, _ in rows(EXPLANATION, under="Sessions that are never replaced")
        if session.startswith("ran ")
    ]
    examples = {
        "SET": "SET statement_timeout = 50",
        "set_config": "SELECT set_config('statement_timeout', '50', false)",
        "PREPARE": "PREPARE p AS SELECT 1",
        "CREATE TEMP": "CREATE TEMP TABLE t (n int)",
        "DECLARE … WITH HOLD": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SET ROLE": "SET ROLE low",
        "LISTEN": "LISTEN jobs",
        "LOAD": "LOAD 'plpgsql'",
        "DO": "DO $$ BEGIN END $$",
        "CALL": "CALL refresh()",
    }
    named = re.findall(r"`([^`]+)`", " ".join(ran))
    assert set(named) == set(examples)
    assert all(read(examples[each]) is Leaves.STATE for each in named)


@pytest.mark.parametrize("page", [EXPLANATION, REFERENCE])
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text()):
        path, _, anchor = target.partition("#")
        linked = (DOCS / page).parent / path if path else DOCS / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
