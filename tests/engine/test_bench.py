"""`awq-tui bench` checks and times products, on a machine without a GPU too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from awq_engine import bench, cli
from awq_engine.errors import AwqError, BadInputError
from awq_kernels import timing
from awq_kernels.dispatch import prepare
from tests.engine.rounded_checkpoint import demo_model, write_awq_folder, write_float_folder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES_1B", ((64, 256), (48, 512)))
    monkeypatch.setattr(bench, "TOKENS_ON_CPU", (1, 3))
    monkeypatch.setattr(timing, "copies_beyond_cache", lambda nbytes, device: 2)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr("awq_engine.commands.bench.copy_bandwidth", lambda device: 1e9)


def test_usual_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device", "cpu", "--json", "--group-size", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["backend"]) == ("cpu", "cpu")
    shapes = [(p["out_features"], p["in_features"], p["group_size"], p["tokens"]) for p in found["products"]]
    assert shapes == [(64, 256, 64, 1), (64, 256, 64, 3), (48, 512, 64, 1), (48, 512, 64, 3)]
    for product in found["products"]:
        assert product["seconds"] > 0
        assert 0 < product["relative_error"] < 1e-2
        assert product["share_of_copy"] == pytest.approx(product["bytes_per_second"] / 1e9)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device", "cpu", "--bits", "8", "--group-size", "-1"]) == 0
    out = capsys.readouterr().out
    assert "vs floats" in out.splitlines()[0]
    assert "reference" in out, "8 bits have no kernel for the CPU yet"
    assert "cpu copies 1.0 GB/s" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits", "5"], "--bits is 5"),
        (["--group-size", "100"], "--group-size is 100"),
        (["--tune"], "nothing to tune"),
        (["--backend", "triton"], "does not run on cpu"),
    ],
)
def test_bad_usage_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_wrong_product_is_an_error() -> None:
    weight = bench.random_weight(64, 256, 4, 64)
    other = prepare(bench.random_weight(64, 256, 4, 32), "reference", CPU)
    with pytest.raises(AwqError, match=r"64 outputs and 256 inputs at 4 bits is wrong by"):
        bench.check(other, weight, torch.randn(2, 256))


def test_bytes_are_those_that_must_move() -> None:
    weight = bench.random_weight(64, 256, 4, 64)
    assert bench.stored_bytes(weight) == 64 * 256 // 2 + 64 * 4 * 4
    assert bench.moved_bytes(weight, torch.zeros(3, 256)) == bench.stored_bytes(weight) + 4 * 3 * (256 + 64)


def test_a_models_shapes_are_measured_once_each(tmp_path: Path) -> None:
    floats = write_float_folder(tmp_path / "floats")
    weights = bench.model_weights(write_awq_folder(floats, tmp_path / "awq"))
    shapes = [(w.weight.out_features, w.weight.in_features, w.weight.bits, w.weight.group_size) for w in weights]
    assert len(set(shapes)) == len(shapes)
    assert sum(weight.count for weight in weights) > len(weights)


def test_a_model_in_floats_is_refused() -> None:
    with pytest.raises(BadInputError, match="not quantized"):
        bench.model_weights(demo_model())
