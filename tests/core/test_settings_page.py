from __future__ import annotations

import ast
import re
from datetime import timedelta
from pathlib import Path

from conn_guard.conf import Settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_the_page_lists_every_setting_with_its_default():
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {key.lower(): _value(default) for key, default in rows} == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(Settings()).items()
    }


def _value(text: str) -> object:
    minutes = re.fullmatch(r"timedelta\(minutes=(\d+)\)", text)
    return timedelta(minutes=int(minutes[1])) if minutes else ast.literal_eval(text)
