"""The forecast of a run, from headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Method, Preset, RunConfig
from awq_engine.estimate import (
    Estimate,
    Speed,
    block_linears,
    estimate,
    fitting_group_sizes,
    measured_speed,
    work,
)
from awq_engine.events import BlockFinished, PlanReady, RunFinished
from awq_engine.journal import Journal
from awq_engine.runs import Run, create_run
from tests.engine.safetensors_files import llama_shapes, model_folder

LLAMA_LINEARS = 128 * 128 * 2 + 64 * 128 * 2 + 3 * 256 * 128


def forecast(folder: Path, **options: object) -> Estimate:
    return estimate(read_checkpoint(folder), RunConfig(str(folder), "/out", **options))  # type: ignore[arg-type]


def test_sizes_are_exact(tmp_path: Path) -> None:
    """Every linear costs 4 bits a weight and 20 bits a group; everything else stays as it is."""
    found = forecast(model_folder(tmp_path), group_size=64)
    weights = 2 * LLAMA_LINEARS
    assert (found.n_blocks, found.n_linears, found.quantized_parameters) == (2, 14, weights)
    assert found.bits_per_weight == 4 + 20 / 64
    untouched = 2 * (found.parameters - weights)
    assert found.bytes_after == untouched + weights * (4 + 20 / 64) / 8
    assert found.bytes_before == 2 * found.parameters
    assert found.problems == ()


def test_one_group_per_row(tmp_path: Path) -> None:
    shapes = {"layers.0.proj.weight": (8, 160)}
    found = forecast(model_folder(tmp_path, shapes), group_size=-1)
    assert found.bits_per_weight == 4 + 20 / 160
    assert found.problems == ()


def test_biggest_numbering_is_the_language_model(tmp_path: Path) -> None:
    """A vision tower has numbered blocks too."""
    tower = {f"vision.blocks.{i}.fc.weight": (64, 64) for i in range(3)}
    linears = block_linears(read_checkpoint(model_folder(tmp_path, {**tower, **llama_shapes()})))
    assert {linear.tensor.name.split(".")[0] for linear in linears} == {"model"}
    assert [linear.block for linear in linears] == sorted(linear.block for linear in linears)


def test_experts_belong_to_their_block_and_routers_stay(tmp_path: Path) -> None:
    shapes = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": (64, 128) for i in range(4)}
    shapes["model.layers.0.mlp.gate.weight"] = (4, 128)
    linears = block_linears(read_checkpoint(model_folder(tmp_path, shapes)))
    assert [(linear.block, linear.name) for linear in linears] == [(0, f"mlp.experts.{i}.up_proj") for i in range(4)]


def test_experts_of_unknown_width_are_not_counted(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.experts.down_proj": (4, 256, 128), "model.layers.0.self_attn.q_proj.weight": (64, 64)}
    linears = block_linears(read_checkpoint(model_folder(tmp_path, shapes)))
    assert [linear.name for linear in linears] == ["self_attn.q_proj"]


def test_unprefixed_and_transposed_blocks(tmp_path: Path) -> None:
    """GPT-2 stores [in, out] under `h.N`."""
    folder = model_folder(tmp_path, {"h.0.mlp.c_fc.weight": (64, 256)}, model_type="gpt2")
    (linear,) = block_linears(read_checkpoint(folder))
    assert (linear.out_features, linear.in_features) == (256, 64)


def test_group_size_that_does_not_divide_names_layer_and_remedy(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, llama_shapes(mlp=192))
    (problem,) = forecast(folder, group_size=128).problems
    assert problem == (
        "A group size of 128 does not divide the 192 inputs of model.layers.0.mlp.down_proj.weight (and 1 more); "
        "choose a group size that fits every layer: 32, 64, -1."
    )
    assert forecast(folder, group_size=64).problems == ()
    assert fitting_group_sizes(block_linears(read_checkpoint(folder))) == [32, 64, -1]


def test_outputs_that_do_not_pack_stay_as_they_are(tmp_path: Path) -> None:
    shapes = {"layers.0.fc.weight": (172, 128), "layers.0.proj.weight": (128, 256)}
    found = forecast(model_folder(tmp_path, shapes))
    words = "its 172 outputs of 4 bits do not fill whole 32-bit words, as the format awq needs"
    assert f"layers.0.fc.weight stays as it is: {words}" in found.notes[0]
    assert (found.n_linears, found.problems) == (1, ())
    assert found.bytes_after == 2 * 172 * 128 + 128 * 256 * (4 + 20 / 128) / 8


def test_already_quantized_is_the_only_problem_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"layers.0.fc.weight": (7, 7)}, quantization_config={"quant_method": "awq"})
    (problem,) = forecast(folder).problems
    assert "is already quantized (awq)" in problem


def test_model_without_blocks_is_a_problem(tmp_path: Path) -> None:
    found = forecast(model_folder(tmp_path, {"embed.weight": (8, 8)}))
    assert "no numbered blocks with weights" in found.problems[0]
    assert found.bits_per_weight == 0


@pytest.mark.parametrize(
    "config", [{"max_position_embeddings": 256}, {"text_config": {"max_position_embeddings": 256}}]
)
def test_sequences_longer_than_the_context_are_a_problem(tmp_path: Path, config: dict[str, object]) -> None:
    folder = model_folder(tmp_path, **config)
    assert "use --seq-len 256" in forecast(folder, seq_len=257).problems[0]
    assert forecast(folder, seq_len=256).problems == ()


def test_more_calibration_needs_more_memory_and_time(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    small, large = forecast(folder, samples=16), forecast(folder, samples=256)
    assert large.peak_host_bytes > small.peak_host_bytes
    assert large.seconds > small.seconds


def test_hidden_states_are_not_counted_when_they_go_to_disk(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    whole = forecast(folder)
    assert forecast(folder, max_memory=whole.peak_host_bytes).peak_host_bytes == whole.peak_host_bytes
    spilled = forecast(folder, max_memory=whole.peak_host_bytes - 1)
    assert spilled.peak_host_bytes == whole.peak_host_bytes - whole.hidden_bytes


def test_presets_and_rounding_differ_in_work() -> None:
    shapes = [(128, 256)]

    def cost(**options: object) -> float:
        return work(shapes, RunConfig("m", "/o", **options))  # type: ignore[arg-type]

    assert cost(method=Method.RTN) < cost(preset=Preset.FAST) < cost(preset=Preset.BALANCED) < cost(preset=Preset.BEST)


def test_guess_says_that_it_is_one(tmp_path: Path) -> None:
    assert "a guess for" in forecast(model_folder(tmp_path)).speed.source


@pytest.fixture
def runs_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def finished_run(seconds: float, **options: object) -> Run:
    run = create_run(RunConfig("m", "/out", **options))  # type: ignore[arg-type]
    linears = [{"block": 0, "name": "fc", "out_features": 128, "in_features": 256}]
    with Journal(run.journal_path) as journal:
        journal(PlanReady("m", "llama", 1, 1, linears, [], 1, 1, 4.0, 1, "/out"))
        journal(BlockFinished(0, 1.0, 0.5, seconds, "f", "0", 1))
        journal(RunFinished({}))
    return run


@pytest.mark.usefixtures("runs_home")
def test_speed_is_measured_from_the_newest_finished_run() -> None:
    run = finished_run(2.0)
    create_run(RunConfig("unfinished", "/out"))
    speed = measured_speed()
    assert speed == Speed(work([(128, 256)], run.config()) / 2.0, f"measured in run {run.id}")


@pytest.mark.usefixtures("runs_home")
def test_tiny_runs_tell_nothing_about_speed() -> None:
    finished_run(2.0, samples=1, seq_len=8)
    assert measured_speed() is None


@pytest.mark.usefixtures("runs_home")
def test_speed_of_another_device_does_not_count() -> None:
    assert measured_speed() is None
    finished_run(2.0, device="cpu")
    assert measured_speed("cuda") is None
    assert measured_speed("cpu") is not None


def test_measured_speed_replaces_the_guess(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(model_folder(tmp_path))
    config = RunConfig(str(tmp_path), "/out")
    slow, fast = (estimate(checkpoint, config, Speed(rate, "measured")) for rate in (1e9, 2e9))
    assert slow.seconds == 2 * fast.seconds
