"""Workflows, Kubernetes manifests and the compose file are valid by their schemas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.postgres.howto import HOW_TO, blocks

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MANIFESTS = [
    pytest.param(yaml.safe_load(block.text), id=f"{page.stem}-{number}")
    for page in sorted(HOW_TO.glob("*.md"))
    if "apiVersion:" in page.read_text()
    for number, block in enumerate(blocks(page.stem, "yaml"))
]


def check(schema: str, *paths: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_knows_each_key_of_a_manifest(manifest):
    for version in ("1.31", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_compose_knows_each_key_of_the_override(tmp_path):
    (block,) = blocks("cvat", "yaml", "compose")
    override = tmp_path / "compose.yml"
    override.write_text(block.text)
    check("vendor.compose-spec", override)


def test_the_forge_knows_each_key_of_a_workflow():
    check("vendor.github-workflows", *WORKFLOWS)
