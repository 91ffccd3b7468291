"""The chart's lines for given readings."""

from __future__ import annotations

import pytest


@pytest.fixture
def readings():
    from demo.meter import Reading

    return lambda *used: [Reading(at=100 + number, used=each) for number, each in enumerate(used)]


def test_a_span_of_time_shows_its_highest_reading(readings):
    from demo.chart import highest

    assert highest(readings(1, 9, 2, 3), 2) == [9, 3]


def test_a_span_without_a_reading_repeats_the_last(readings):
    from demo.chart import highest

    assert highest(readings(4, 7), 4) == [4, 4, 4, 7]
    assert highest(readings(5), 3) == [5, 5, 5]
    assert highest([], 2) == [0, 0]


def test_one_session_is_seen_and_none_is_not():
    from demo.chart import HEIGHT, bars

    lines = list(bars([0, 1, 37, 99], 37))
    assert lines[0] == "  ██"
    assert len(lines) == HEIGHT
    assert lines[-1][:1] == " "
    assert lines[-1][1] != " "
