"""The engine's pages: their settings are settings, their code runs, and their links lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from conn_guard import conf

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = ["explanation/the-engine.md", "reference/engine.md"]


@pytest.fixture
def named():
    """What the reference's blocks of code define, all of them run one after the other."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "reference/engine.md").read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_settings_are_settings(named):
    settings, problems = conf.parse(named["CONN_GUARD"])
    assert problems == []
    assert settings.report_held_for is not None
    import_module(named["DATABASES"]["default"]["ENGINE"] + ".base")


def test_the_code_runs(named, make_engine):
    assert named["listen"]() is None


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text()):
        path, _, anchor = target.partition("#")
        linked = (DOCS / page).parent / path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
