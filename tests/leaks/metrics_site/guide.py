"""The Python code of docs/how-to/export-metrics.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "export-metrics.md"


def run(name: str) -> dict[str, Any]:
    """Run the block of Python with that name, and return the names that it defines."""
    found = re.search(rf"^```python {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, name
    defined: dict[str, Any] = {"__name__": "guide"}
    exec(compile(found[1], f"{PAGE.name}, {name}", "exec"), defined)
    return defined
