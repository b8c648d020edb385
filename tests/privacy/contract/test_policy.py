"""A policy cannot be built wrong, and no file of it, however odd, is more than one line."""

import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.contract.policy import Policy, PolicyError, builtin_policy, load_policy, parse_policy

GOOD = "epsilon = 3.0\ndelta = 1e-5\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epsilonn = 1", "unknown key epsilonn, did you mean epsilon?"),
        ("zzz = 1", "unknown key zzz, the keys are"),
        ("min_sigma = -1", "min_sigma must be a number >= 0"),
        ("min_sigma = nan", "min_sigma must be finite"),
        ("min_sigma = inf", "min_sigma must be finite"),
        ("max_rate = 5e-324", "max_rate must be a number >= 1e-09 and <= 1"),
        ("max_steps = 0", "max_steps must be an integer >= 1"),
        ("max_steps = true", "max_steps must be"),
        ("max_steps = 1.0", "max_steps must be"),
        ("min_rows = 99999999999999999999999", "min_rows must be"),
        ('tasks = "digits"', "tasks must be a list of names"),
        ('tasks = ["digits", 3]', "tasks must be a list of names"),
        ('tasks = [""]', "tasks must be a list of names"),
        ('approve = "all"', 'approve must be one of "list", "within-limits"'),
        ("more_noise = 1", "more_noise must be true or false, got 1"),
        ("records_per_subject = 0", "records_per_subject must be an integer >= 1"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(line: str, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(GOOD + line)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "epsilon = inf\ndelta = 1e-5",
        "epsilon = nan\ndelta = 1e-5",
        "epsilon = 1e7\ndelta = 1e-5",
        "epsilon = 3\ndelta = 0",
        "epsilon = 3\ndelta = 1",
        "epsilon = 3\ndelta = 1e-300",
        "epsilon = 3",
        "delta = 1e-5",
        "epsilon = " + "9" * 5000,
        "epsilon = " + "[" * 3000,
        "epsilon",
    ],
)
def test_no_limit_no_policy(text: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["epsilon", "delta", "min_sigma", "max_rate", "max_steps"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, True, "1", None, 10**400, [1], -1])
def test_a_policy_cannot_be_built_wrong(key: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=f"^{key} must be .*, got "):
        replace(Policy(3.0, 1e-5), **{key: value})


def test_only_code_may_leave_the_limit_out() -> None:
    assert Policy(math.inf, 1e-5).budget is None
    assert builtin_policy().budget is not None


def test_a_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "policy.toml", tmp_path / "absent", tmp_path):
        with pytest.raises(PolicyError, match=str(path)):
            load_policy(path)


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from([item.name for item in fields(Policy)]),
    value=st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=3).map(tuple),
)
def test_every_policy_that_can_be_built_survives_its_own_file(key: str, value: Any) -> None:
    try:
        policy = replace(builtin_policy(), **{key: value})
    except PolicyError:
        return
    assert parse_policy(policy.to_toml()) == policy
    assert tomllib.loads(policy.to_toml())[key] == (
        list(value) if isinstance(value, tuple) else value
    )
