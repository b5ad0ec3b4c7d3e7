"""Exceptions for single linears: how they are written, which linear they reach, and what comes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from awq_engine.checkpoint import read_checkpoint
from awq_engine.cli import main
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError, UsageError
from awq_engine.estimate import estimate
from awq_engine.fused import disagreement, site
from awq_engine.overrides import Override, deciding_override, parse_override, pattern_problem
from awq_engine.plan import make_plan
from awq_engine.skeleton import build_skeleton
from awq_engine.spec import spec_of
from tests.engine.tiny_model import write_tiny_model

KEYS = [f"model.layers.{block}.{name}" for block in (0, 1, 10) for name in ("self_attn.q_proj", "mlp.down_proj")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*.down_proj=bits:8,group:64", Override("*.down_proj", bits=8, group_size=64)),
        ("*.down_proj=group:-1", Override("*.down_proj", group_size=-1)),
        ("model.layers.0.*=skip", Override("model.layers.0.*", skip=True)),
        (" a=b = bits : 8 ", Override("a=b", bits=8)),
    ],
)
def test_written_forms(text: str, expected: Override):
    assert parse_override(text) == expected
    assert parse_override(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "*.q_proj", "=skip", "*=", "*=bits", "*=bits:x", "*=bits:8,bits:4", "*=skip,bits:4", "*=act:8"],
)
def test_anything_else_is_refused_with_the_form(text: str):
    with pytest.raises(UsageError, match="PATTERN=skip"):
        RunConfig("m", "o", overrides=(text,))


def test_a_pattern_fits_whole_names_and_the_last_one_decides():
    """`layers.1.*` is not `layers.10`, and the deciding override does not inherit from the others."""
    overrides = ("*.down_proj=group:32", "model.layers.1.*=skip", "*.1?.mlp.*=bits:4")

    assert [deciding_override(overrides, key) for key in KEYS] == [
        None,
        Override("*.down_proj", group_size=32),
        Override("model.layers.1.*", skip=True),
        Override("model.layers.1.*", skip=True),
        None,
        Override("*.1?.mlp.*", bits=4),
    ]


def test_what_an_override_does_not_name_is_the_runs_own():
    config = RunConfig("m", "o", group_size=64, symmetric=True, overrides=("*.0.mlp.*=skip",))

    assert spec_of(config, KEYS[1]) is None
    spec = spec_of(config, KEYS[0])
    assert spec is not None
    assert (spec.bits, spec.group_size, spec.symmetric) == (4, 64, True)


@pytest.mark.parametrize(
    ("pattern", "near"), [("q_proj", "self_attn.q_proj"), ("*.dwon_proj", "mlp.down_proj"), ("lm_head", "layers.0")]
)
def test_a_pattern_that_fits_nothing_is_an_error_with_near_names(pattern: str, near: str):
    problem = pattern_problem(("*=skip", f"{pattern}=skip"), KEYS)

    assert problem is not None
    assert f"'{pattern}=skip' fits none of the 6 linears" in problem
    assert near in problem


def test_the_awq_format_holds_only_skip():
    with pytest.raises(UsageError, match="only skip works there"):
        RunConfig("m", "o", overrides=("*.down_proj=group:32",))


def test_overrides_survive_json():
    config = RunConfig("m", "o", overrides=("*.down_proj=skip", "*.q_proj=skip"))
    data = json.loads(json.dumps(config.to_json()))

    assert RunConfig.from_json(data) == config
    assert RunConfig.from_json({"model": "m", "output": "o"}).overrides == ()
    for damaged in ("*.q_proj=skip", [7]):
        with pytest.raises(BadInputError, match="'overrides'"):
            RunConfig.from_json({**data, "overrides": damaged})


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.layers.3.self_attn.k_proj", "model.layers.3.self_attn.q_proj+k_proj+v_proj"),
        ("model.layers.3.mlp.up_proj", "model.layers.3.mlp.gate_proj+up_proj"),
        ("model.layers.3.mlp.experts.7.down_proj", "model.layers.3.mlp.experts"),
        ("model.layers.3.mlp.shared_expert.up_proj", "model.layers.3.mlp.shared_expert.gate_proj+up_proj"),
        ("lm_head", ".lm_head"),
    ],
)
def test_sites_are_what_servers_load_as_one(key: str, expected: str):
    assert site(key) == expected


def test_disagreement_names_a_pair():
    keys = [f"model.layers.0.self_attn.{role}_proj" for role in "qkvo"]

    assert disagreement(dict.fromkeys(keys, 4) | {keys[3]: None}) is None
    sentence = disagreement(dict.fromkeys(keys, 4) | {keys[2]: 8})
    assert sentence is not None
    assert "q_proj and model.layers.0.self_attn.v_proj" in sentence


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_the_plan_skips_warns_and_refuses(model: Path):
    """Skipped linears are listed with their override, and a half skipped qkv is warned about."""
    checkpoint = read_checkpoint(model)
    config = RunConfig(str(model), "/out", group_size=32, overrides=("*.layers.1.*.v_proj=skip",))
    plan = make_plan(config, build_skeleton(checkpoint))

    assert len(plan.linears) == 13
    assert plan.skipped == (
        ("model.layers.1.self_attn.v_proj", "left out by the override *.layers.1.*.v_proj=skip"),
    )  # fmt: skip
    assert "vLLM" in plan.event.warnings[0]
    forecast = estimate(checkpoint, config)
    assert (forecast.bytes_after, forecast.n_linears) == (plan.event.bytes_after, 13)
    with pytest.raises(BadInputError, match="fits none of the 14 linears"):
        make_plan(replace(config, overrides=("*.w_proj=skip",)), build_skeleton(checkpoint))
    assert estimate(checkpoint, replace(config, overrides=("*=skip",))).problems


def test_a_run_with_skipped_linears(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Skipped weights keep their bytes, readers are told, and the result is verified and evaluates."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    options = ["--override", "*.mlp.*=skip", "--override", "*.1.mlp.down_proj=skip"]
    code = main(
        ["quantize", str(model), "-o", str(out), "--group-size", "32", "--preset", "fast", "--samples", "2",
         "--seq-len", "64", *options, "--json"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    written, source = read_checkpoint(out), read_checkpoint(model)

    assert result["overrides"] == ["*.mlp.*=skip", "*.1.mlp.down_proj=skip"]
    assert result["bytes_after"] == written.nbytes
    kept = (written.quantization or {})["modules_to_not_convert"]
    assert {"lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"} <= set(kept)
    assert written.tensors["model.layers.1.mlp.down_proj.weight"].nbytes == (
        source.tensors["model.layers.1.mlp.down_proj.weight"].nbytes
    )
    assert "*.1.mlp.down_proj=skip" in (out / "README.md").read_text()
    assert main(["eval", str(out), "--against", str(model), "--seq-len", "64", "--max-tokens", "128", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["kl"] < 1
