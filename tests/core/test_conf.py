from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard import conf
from conn_guard.conf import KEYS, Budget, Settings, parse, parse_duration

JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.timedeltas()
    | st.decimals(),
    lambda children: (
        st.lists(children) | st.dictionaries(st.text(), children) | st.tuples(children)
    ),
    max_leaves=5,
)


def test_an_empty_dict_gives_the_defaults():
    assert parse({}) == (Settings(), [])


def test_every_key_is_read_and_typed():
    settings, problems = parse(
        {
            "CLOSE": "always",
            "CLOSE_WITH_OWNER": False,
            "ENGINE_IDLE_FOR": 30,
            "ENGINE_REPLACE": {"default": False, "other": True},
            "STAMP_ORIGIN": "view",
            "REPORT_HELD_FOR": 1.5,
            "HELD_FOR_ACTION": "close",
            "REAP_IDLE_FOR": timedelta(hours=1),
            "REAP_IDLE_IN_TRANSACTION_FOR": 60,
            "PROTECTED_APPLICATIONS": ["cron*"],
            "CHECK_AT_STARTUP": None,
            "POOLER": {"default": "session"},
            "BUDGET": {"processes": 4, "threads": 8},
        }
    )
    assert problems == []
    assert settings == Settings(
        close="always",
        close_with_owner=False,
        engine_idle_for=timedelta(seconds=30),
        engine_replace={"default": False, "other": True},
        stamp_origin="view",
        report_held_for=timedelta(seconds=1.5),
        held_for_action="close",
        reap_idle_for=timedelta(hours=1),
        reap_idle_in_transaction_for=timedelta(minutes=1),
        protected_applications=("cron*",),
        check_at_startup=None,
        pooler={"default": "session"},
        budget=Budget(processes=4, threads=8, other=0),
    )


@pytest.mark.parametrize("raw", [[], None, "auto", 3, ()])
def test_E001_what_is_no_dict_is_one_problem_and_gives_the_defaults(raw):
    settings, [problem] = parse(raw)
    assert settings == Settings()
    assert problem.id == "E001"
    assert problem.message == f"CONN_GUARD is {raw!r}, not a dict."


def test_E002_an_unknown_key_names_the_nearest_one():
    _, [problem] = parse({"CLOSE_WITH_OWNERS": True})
    assert (problem.id, problem.message) == (
        "E002",
        "CONN_GUARD['CLOSE_WITH_OWNERS'] is not a setting of conn_guard.",
    )
    assert problem.hint == "Did you mean 'CLOSE_WITH_OWNER'?"


def test_E002_an_unknown_key_like_no_other_lists_the_keys():
    _, [problem] = parse({7: True})
    assert problem.hint == f"The keys are {', '.join(KEYS)}."


WRONG = [
    ("CLOSE", True, "'auto', 'always' or 'never'"),
    ("CLOSE_WITH_OWNER", 1, "True or False"),
    ("ENGINE_IDLE_FOR", "never", "a duration"),
    ("ENGINE_REPLACE", {"default": 0}, "a dict of aliases to True or False"),
    ("ENGINE_REPLACE", {7: False}, "a dict of aliases to True or False"),
    ("ENGINE_REPLACE", False, "a dict of aliases to True or False"),
    ("STAMP_ORIGIN", True, "False, 'pid' or 'view'"),
    ("STAMP_ORIGIN", 0, "False, 'pid' or 'view'"),
    ("REPORT_HELD_FOR", False, "a duration"),
    ("HELD_FOR_ACTION", True, "'log' or 'close'"),
    ("HELD_FOR_ACTION", None, "'log' or 'close'"),
    ("HELD_FOR_ACTION", "Close", "'log' or 'close'"),
    ("REAP_IDLE_FOR", "ten", "a duration"),
    ("REAP_IDLE_FOR", None, "a duration"),
    ("REAP_IDLE_FOR", 0, "a duration above zero"),
    ("REAP_IDLE_FOR", -1.0, "a duration above zero"),
    ("REAP_IDLE_FOR", float("nan"), "a duration above zero"),
    ("REAP_IDLE_FOR", float("inf"), "a duration above zero"),
    ("REAP_IDLE_FOR", 10**400, "a duration above zero"),
    ("REAP_IDLE_FOR", 1e300, "a duration above zero"),
    ("REAP_IDLE_IN_TRANSACTION_FOR", "1m", "a duration"),
    ("PROTECTED_APPLICATIONS", "psql*", "a list of application names"),
    ("PROTECTED_APPLICATIONS", [1], "a list of application names"),
    ("CHECK_AT_STARTUP", "warn", "'log', 'raise' or None"),
    ("POOLER", {"default": "statement"}, 'a dict of aliases to "session" or "transaction"'),
    ("POOLER", ["default"], 'a dict of aliases to "session" or "transaction"'),
    ("BUDGET", {"processes": 4}, "None or a dict of counts"),
    ("BUDGET", {"processes": 4, "threads": 0}, "None or a dict of counts"),
    ("BUDGET", {"processes": True, "threads": 1}, "None or a dict of counts"),
    ("BUDGET", 3, "None or a dict of counts"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), WRONG)
def test_E003_a_wrong_value_names_key_value_and_what_is_wanted(key, value, wanted):
    settings, [problem] = parse({key: value})
    assert settings == Settings()
    assert problem.id == "E003"
    assert problem.message.startswith(f"CONN_GUARD[{key!r}] is ")
    assert problem.message.endswith(f", not {wanted}.")
    assert problem.hint


@given(JSONISH | st.dictionaries(st.sampled_from(KEYS) | st.text(), JSONISH))
def test_parse_never_raises(raw):
    settings, problems = parse(raw)
    assert isinstance(settings, Settings)
    assert all(problem.message and problem.hint for problem in problems)


def test_a_value_that_can_not_be_shown_is_wrong_all_the_same():
    _, problems = parse({"REAP_IDLE_FOR": 10**5000, 10**5000: 1})
    assert [problem.id for problem in problems] == ["E003", "E002"]
    assert parse(10**5000)[1][0].id == "E001"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5s", 0.5), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("0", 0)],
)
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["banana", "", "-1s", "1w", "1 m", "1e3", "10M", "9" * 20 + "d", "9" * 400, "٣s"]
)
def test_what_is_no_duration_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^'.*' is (not a|too long a) duration: write .*\.$"):
        parse_duration(text)


@pytest.mark.parametrize("present_at_first", [True, False])
def test_what_is_assigned_to_the_settings_counts_at_once_and_so_does_its_absence(
    settings, present_at_first
):
    if present_at_first:
        settings.CONN_GUARD = {"CLOSE": "never"}
        assert conf.current().close == "never"
    del settings.CONN_GUARD
    assert conf.current().close == "auto"
    settings.CONN_GUARD = {"CLOSE": "always"}
    assert conf.current().close == "always"


def test_a_setting_that_the_project_module_never_had_is_seen_when_it_comes(monkeypatch):
    for value, close in (({"CLOSE": "never"}, "never"), ({"CLOSE": "always"}, "always")):
        with monkeypatch.context() as patch:
            patch.setattr("django.conf.settings.CONN_GUARD", value, raising=False)
            assert conf.current().close == close
        assert conf.current().close == "auto"


@pytest.mark.parametrize(
    "value",
    ["postgres://a:hunter2@db/x", {"CLOSE": "postgres://a:hunter2@db/x"}, {"hunter2@db": 1}],
)
def test_no_message_shows_what_may_be_a_password(value):
    [problem] = parse(value)[1]
    assert "hunter2" not in problem.message + problem.hint
    assert "(a text that may hold a secret)" in problem.message
