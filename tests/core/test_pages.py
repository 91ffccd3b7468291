"""The addresses of the documentation's pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conn_guard import pages


@pytest.fixture
def released(tmp_path, monkeypatch):
    """Return a function that makes the installed distribution name these addresses."""

    def make(*lines: str) -> None:
        folder = tmp_path / "conn_guard-9.0.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.4", "Name: conn-guard", "Version: 9.0"]
        (folder / "METADATA").write_text("\n".join([*head, *lines]) + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        pages._home.cache_clear()

    yield make
    pages._home.cache_clear()


@pytest.mark.parametrize(
    ("home", "address"),
    [
        ("https://forge.example/o/p/blob/HEAD/docs/README.md", "blob/HEAD/docs/how-to/one.md#two"),
        ("https://docs.example/en/stable/", "en/stable/how-to/one.html#two"),
        ("https://docs.example", "docs.example/how-to/one.html#two"),
    ],
)
def test_a_page_lies_below_the_address_of_the_installed_release(released, home, address):
    source = "Project-URL: Source, https://forge.example/o/p"
    released(source, f"Project-URL: Documentation, {home}")
    assert pages.address("how-to/one.md#two").endswith(f"/{address}")
    assert pages.address("how-to/one.md#two").startswith(home.rpartition("/")[0])


def test_without_an_address_a_page_is_a_path_in_the_checkout(released):
    released()
    assert pages.address("how-to/one.md") == "docs/how-to/one.md"


def test_a_package_that_was_never_installed_names_the_path(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    pages._home.cache_clear()
    assert pages.address("how-to/one.md") == "docs/how-to/one.md"
    pages._home.cache_clear()


def test_no_message_names_a_page_by_its_path_in_a_checkout():
    """A user of a release has no checkout. ``checks/page.py`` makes a page of the checkout."""
    source = Path(pages.__file__).parent
    path = re.compile(r"docs/(?:how-to|reference|explanation|monitoring|tutorial)/")
    found = {
        str(module.relative_to(source))
        for module in source.rglob("*.py")
        if path.search(module.read_text(encoding="utf-8"))
    }
    assert found == {"checks/page.py"}
