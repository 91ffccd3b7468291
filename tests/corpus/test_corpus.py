"""Each case of a corpus gets every id that it deserves, and no other."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.conf import global_settings
from django.db import connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.utils import ConnectionHandler

from conn_guard.checks.rules import RULES
from tests.corpus.cases import CASES, POSTGRES, SQLITE, Case
from tests.django.checks_project import CAN_POOL, ids

OTHERS = Path(os.environ.get("CONN_GUARD_CORPUS", Path(__file__).parents[3] / "shared/corpus/open"))


def asks_for_a_pool(settings) -> bool:
    databases = settings["DATABASES"].values()
    return any(
        "pool" in (alias.get("OPTIONS") or {}) for alias in databases if isinstance(alias, dict)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_case_deserves_its_ids_and_no_other(case: Case):
    if asks_for_a_pool(case.settings) and not CAN_POOL:
        pytest.skip("Django pools from 5.1 on, with psycopg 3")
    assert ids(case.settings) == case.wanted


def test_every_static_id_has_a_case():
    wanted = set().union(*(case.wanted for case in CASES))
    assert wanted == {rule.id for rule in RULES.values() if rule.subject == "alias"} | {"W106"}


# Django's own verdict: a project with an Error can't query, and one without can.

REACHABLE = [
    case
    for case in CASES
    if "default" in case.settings["DATABASES"]
    and case.default.get("ENGINE") in (POSTGRES, SQLITE)
    and "service" not in case.default.get("OPTIONS", {})
    # Django 6.1 accepts a check of the project's own, so a check of None no longer fails.
    and case.default.get("OPTIONS", {}).get("pool") != {"min_size": 1, "check": None}
]


@pytest.mark.parametrize("case", REACHABLE, ids=lambda case: case.title)
def test_an_error_is_what_django_cannot_connect_with(
    case: Case, django_db_setup, django_db_blocker
):
    if asks_for_a_pool(case.settings) and not CAN_POOL:
        pytest.skip("Django pools from 5.1 on, with psycopg 3")
    server = {
        key: connections.settings["default"][key]
        for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")
    }
    here = {
        **case.default,
        **(server if case.default["ENGINE"] == POSTGRES else {"NAME": ":memory:"}),
    }
    driver = "psycopg" if is_psycopg3 else "psycopg2"
    found = ids({**case.settings, "DATABASES": {"default": here}}, driver=driver)
    errors = {each for each in found if each.startswith("E1")}
    with django_db_blocker.unblock(), ExitStack() as stack:
        connection = ConnectionHandler({"default": here})["default"]
        if errors:
            stack.enter_context(pytest.raises(Exception))  # noqa: PT011 - of many kinds, as the reference page tells
        connection.ensure_connection()
        connection.close()
        if here.get("OPTIONS", {}).get("pool"):
            connection.close_pool()


# A corpus elsewhere: settings files with their labels in comments.


def labels(text: str) -> dict[str, set[str]]:
    found = re.findall(r"^# (labels|info|deploy-labels|tolerate): (.*)$", text, re.MULTILINE)
    return {key: {each.strip() for each in value.split(",")} - {"ok", "-"} for key, value in found}


@pytest.mark.parametrize("path", sorted(OTHERS.glob("*.py")), ids=lambda path: path.stem)
def test_another_corpus_deserves_its_ids_and_no_other(path: Path, monkeypatch):
    for name, value in list(os.environ.items()):
        monkeypatch.setenv(name, value)  # so that what the file does to the environment is undone
    spec = importlib.util.spec_from_file_location("corpus_case", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {
        name: value
        for source in (global_settings, module)
        for name, value in vars(source).items()
        if name.isupper()
    }
    if asks_for_a_pool(made) and not CAN_POOL:
        pytest.skip("Django pools from 5.1 on, with psycopg 3")
    slugs = json.loads((OTHERS.parent / "mapping.json").read_text())
    by_id = {
        each.removeprefix("conn_guard."): slug for slug, every in slugs.items() for each in every
    }
    found = {by_id[each] for each in ids(made) if each in by_id}
    label = labels(path.read_text())
    wanted = {slug for slug in label["labels"] | label["info"] if slugs[slug]}
    assert wanted <= found <= wanted | label["tolerate"] | label["deploy-labels"]
