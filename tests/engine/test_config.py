"""A request is checked when it is made, and survives being written and read."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_engine.config import GROUP_SIZES, Method, Preset, RunConfig, RunFile
from awq_engine.errors import AwqError, BadInputError, ExitCode, UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


def configs() -> st.SearchStrategy[RunConfig]:
    return st.builds(
        RunConfig,
        model=st.text(),
        output=st.text(),
        bits=st.just(4),
        group_size=st.sampled_from(GROUP_SIZES),
        preset=st.sampled_from(Preset),
        method=st.sampled_from(Method),
        samples=st.integers(1),
        seq_len=st.integers(1),
        seed=st.integers(0, 2**63 - 1),
        threads=st.integers(0),
    )


@given(configs(), st.text(), st.floats(allow_nan=False))
def test_run_file_survives_writing_and_reading(config: RunConfig, run_id: str, created: float) -> None:
    request = RunFile(run_id, config, created)
    assert RunFile.loads(request.dumps(), "run.json") == request
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"bits": 5}, "choose one of 2, 3, 4, 8"),
        ({"bits": 3}, "--format compressed-tensors, gptq or gptq_v2"),
        ({"group_size": -2}, "choose 1 or more, or -1"),
        ({"group_size": 0}, "A group size of 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seq_len": -1}, "sequence length must be at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63}, r"below 2\*\*63"),
        ({"threads": -1}, "cannot be negative"),
    ],
)
def test_impossible_value_is_a_usage_error_naming_what_works(options: dict[str, int], part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        RunConfig("m", "/o", **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == ExitCode.BAD_INPUT == 2


def test_unknown_keys_are_refused_by_name() -> None:
    data = {**RunConfig("m", "/o").to_json(), "novelty": 1}
    with pytest.raises(BadInputError, match=r"unknown keys \['novelty'\]; a newer awq-tui"):
        RunConfig.from_json(data)


def test_newer_schema_says_upgrade() -> None:
    text = RunFile("r", RunConfig("m", "/o"), 0.0, version=2).dumps()
    with pytest.raises(BadInputError, match="upgrade to read it"):
        RunFile.loads(text, "run.json")


@given(JSON)
def test_any_json_is_a_request_or_an_error_of_ours(data: object) -> None:
    with pytest.raises(AwqError):
        RunFile.loads(json.dumps(data), "run.json")


@given(st.text())
def test_any_text_is_an_error_of_ours(text: str) -> None:
    with pytest.raises(BadInputError):
        RunFile.loads(text, "run.json")


@given(st.sampled_from(FIELDS), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: object) -> None:
    data = {"version": 1, "run_id": "r", "created": 1.0, "config": {**RunConfig("m", "/o").to_json(), field: value}}
    try:
        config = RunFile.loads(json.dumps(data), "run.json").config
    except AwqError:
        return
    default = RunConfig("m", "/o")
    assert type(getattr(config, field)) is type(getattr(default, field)), "a value of another type was taken"
