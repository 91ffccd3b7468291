from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.stamp import NAME_BYTES, cut, stamp, unstamped


@pytest.mark.parametrize(
    ("name", "pid", "view", "stamped"),
    [
        ("django", 4711, "", "django:4711"),
        ("cvat:server", 4711, "", "cvat:server:4711"),
        ("cvat:server", 4711, "assets.views.download", "cvat:server:4711:assets.views.download"),
        ("é" * 30, 12, "ü" * 30, "é" * 30 + ":12"),
        ("x" * 60, 4711, "view", "x" * 60),
    ],
)
def test_a_stamp_fits_and_keeps_its_process_id_whole(name, pid, view, stamped):
    assert stamp(name, pid, view) == stamped


@given(st.text(), st.integers(1, 2**31 - 1), st.text())
def test_a_stamp_is_never_longer_than_postgresql_keeps(name, pid, view):
    assert len(stamp(cut(name), pid, view).encode()) <= NAME_BYTES


@pytest.mark.parametrize(
    ("application_name", "name"),
    [
        ("cvat:server:4711", "cvat:server"),
        ("cvat:server:4711:assets.views.download", "cvat:server"),
        ("cvat:server", "cvat:server"),
        ("psql", "psql"),
        ("", ""),
        ("web\nserver:12", "web\nserver"),
        ("web:0", "web:0"),
    ],
)
def test_a_stamp_is_taken_off_again(application_name, name):
    assert unstamped(application_name) == name
