"""The workflows run what this checkout has, and pin every action to a full commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_an_action_is_pinned_to_a_full_commit_and_its_version_is_told(path):
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    assert [
        each for each in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", each)
    ] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_says_more(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_the_gate_waits_for_every_other_job():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    gate = jobs.pop("passed")
    assert gate["if"] == "always()"
    assert gate["needs"] == [*jobs]
    assert gate["steps"][0]["run"] == f'test "$RESULTS" = "{" ".join(["success"] * len(jobs))}"'
