"""The readme and the addresses in the metadata of a wheel; hatchling runs this file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

BASE = "CONN_GUARD_REPOSITORY"
"""The variable with the repository's address, without a slash at its end."""
DOCS = "CONN_GUARD_DOCS"
"""The variable with the address of the published site, if there is one."""


class ProjectMetadata(MetadataHookInterface):  # type: ignore[misc,unused-ignore]
    """Fill in `readme` and `urls`.

    A package index can't follow a relative link, so relative links of README.md are made absolute
    where CONN_GUARD_REPOSITORY is set, as it is when a release is built.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        base = os.environ.get(BASE, "")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, base)}
        metadata["urls"] = addresses(base)


def absolute(text: str, base: str) -> str:
    """Return *text* with its relative links below *base*, or unchanged without a base."""
    if not base:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:|#)", rf"\g<1>{base}/raw/HEAD/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!\w+:|#)", rf"\g<1>{base}/blob/HEAD/", text)


def addresses(base: str) -> dict[str, str]:
    """Return the project's addresses, none of them without a base."""
    if not base:
        return {}
    return {
        "Source": base,
        "Documentation": os.environ.get(DOCS) or f"{base}/blob/HEAD/docs/README.md",
        "Changelog": f"{base}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{base}/issues",
    }
