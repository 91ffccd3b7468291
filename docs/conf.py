"""Settings of Sphinx, which makes a site of the pages in this folder."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

import django
from django.conf import settings
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# The contrib modules define models and read settings when they are imported.
settings.configure(INSTALLED_APPS=["conn_guard"])
django.setup()

from conn_guard import __version__  # noqa: E402

project = "conn_guard"
copyright = "the authors of conn_guard"  # noqa: A001
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["README.md"]
myst_heading_anchors = 4
suppress_warnings = [
    # Not every language of a block has a lexer: its text is shown without colours.
    "misc.highlighting_failure",
]

# The types of the overloads are private names.
autodoc_typehints = "none"

html_theme = "furo"
html_title = f"conn_guard {release}"
html_show_sphinx = False
html_copy_source = False

OTHER_NAMES = {"CHANGELOG.md": "/changelog", "docs/README.md": "/index"}
"""The pages of the site that have another name in the repository."""
REPOSITORY = os.environ.get("CONN_GUARD_REPOSITORY", "")


def lead_out(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead the links that leave docs/ to the repository, or unlink them without its address."""

    def absolute(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["place"]))
        if place in OTHER_NAMES:
            return f"[{link['text']}]({OTHER_NAMES[place]})"
        if place.startswith("docs/"):
            return link[0]
        return f"[{link['text']}]({REPOSITORY}/blob/HEAD/{place})" if REPOSITORY else link["text"]

    source[0] = re.sub(r"\[(?P<text>[^\]]*)\]\((?P<place>\.\./[^)\s]*)\)", absolute, source[0])


def setup(app: Sphinx) -> None:
    """Connect what this site adds to Sphinx."""
    app.connect("source-read", lead_out)
