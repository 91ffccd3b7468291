from __future__ import annotations

import ast
import re
from datetime import timedelta
from pathlib import Path

import conn_guard
from conn_guard.conf import Settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
SOURCE = Path(conn_guard.__file__).parent


def test_the_page_lists_every_setting_with_its_default():
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {key.lower(): _value(default) for key, default in rows} == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(Settings()).items()
    }


def test_the_page_lists_every_logger():
    table = PAGE.read_text(encoding="utf-8").partition("## Loggers\n")[2]
    listed = [
        name
        for first in re.findall(r"^\| (`conn_guard.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(.+?)`", first)
    ]
    used = {
        name
        for module in SOURCE.rglob("*.py")
        for name in re.findall(r'getLogger\("(.+?)"\)', module.read_text(encoding="utf-8"))
    }
    assert sorted(listed) == sorted(used)


def _value(text: str) -> object:
    minutes = re.fullmatch(r"timedelta\(minutes=(\d+)\)", text)
    return timedelta(minutes=int(minutes[1])) if minutes else ast.literal_eval(text)
