"""Whole runs on tiny models: what is written, what survives, what is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from awq_engine import block_folds, linear_rounding
from awq_engine.capture import BlockInputs
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, Method, Preset
from awq_engine.errors import BadInputError, InterruptedRunError, UsageError
from awq_engine.events import BlockFinished, Event, FoldTested, LinearQuantized, RunFinished, Verified, Warned
from awq_engine.formats.stated import read_quantization
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.quantize import QParams, choose_qparams, group_ranges, round_to_nearest
from awq_engine.report import read_report, rows_of_report
from awq_engine.runs import Run, RunStatus, create_run
from awq_engine.spec import QuantSpec
from awq_engine.state import replay
from awq_engine.unpacked import read_dequantized
from tests.engine.tiny_run import tiny_request

SPEC = QuantSpec(4, 32, False)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_run(tmp_path: Path, model: Path) -> Callable[..., Run]:
    """A new run on the tiny model; keyword arguments go to `RunConfig`."""

    def make(**options: object) -> Run:
        return create_run(tiny_request(tmp_path, **{"model": model, "preset": Preset.FAST, **options}))

    return make


def finish(run: Run) -> list[Event]:
    """Execute the run in this process; the events it told."""
    with Journal(run.journal_path) as emit:
        execute(run, emit)
    return [record.event for record in run.records()]


def stop_after_block(run: Run, block: int) -> BlockFinished:
    """Execute the run until `block` is finished and cancel it there; ready to be resumed."""

    class CancelAfterBlock(Journal):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, BlockFinished) and event.block == block:
                run.request_cancel()

    with CancelAfterBlock(run.journal_path) as emit, pytest.raises(InterruptedRunError, match="resume"):
        execute(run, emit)
    run.clear_cancel()
    return [record.event for record in run.records() if isinstance(record.event, BlockFinished)][-1]


def weights_of(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file but the report, whose timings differ from run to run."""
    files = [file for file in sorted(folder.iterdir()) if file.name != "quantization_report.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_output_is_an_awq_checkpoint(make_run: Callable[..., Run], model: Path, group_size: int, symmetric: bool):
    """Packed tensors, honest config, everything else byte for byte, and a verified result."""
    run = make_run(group_size=group_size, symmetric=symmetric)
    events = finish(run)
    output = Path(run.config().output)
    written, source = read_checkpoint(output), read_checkpoint(model)

    assert written.quantization == {
        "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    name = "model.layers.1.mlp.down_proj"
    groups = 1 if group_size == -1 else 128 // group_size
    shapes = {part: written.tensors[f"{name}.{part}"].shape for part in ("qweight", "qzeros", "scales")}
    assert shapes == {"qweight": (128, 8), "qzeros": (groups, 8), "scales": (groups, 64)}
    assert raw_bytes(written, "model.embed_tokens.weight") == raw_bytes(source, "model.embed_tokens.weight")
    assert not any(key.endswith("proj.weight") for key in written.tensors)
    assert next(event for event in events if isinstance(event, Verified)).max_logit_difference < 1e-4
    result = next(event for event in events if isinstance(event, RunFinished)).result
    assert result["bytes_after"] == written.nbytes
    assert result["bytes_before"] == source.nbytes
    if symmetric:
        zeros = set(raw_bytes(written, f"{name}.qzeros"))
        assert zeros == {0x88}


def stored_weight(folder: Path, name: str) -> torch.Tensor:
    """One quantized linear of a written checkpoint, in floats."""
    checkpoint = read_checkpoint(folder)
    quantization = read_quantization(checkpoint)
    assert quantization is not None
    return read_dequantized(checkpoint, quantization, name)


def raw_bytes(checkpoint, name: str) -> bytes:
    info = checkpoint.tensors[name]
    return info.file.read_bytes()[info.start : info.start + info.nbytes]


def test_rtn_is_plain_rounding(make_run: Callable[..., Run], model: Path):
    """`--method rtn` rounds the original weights to nearest, and folds nothing."""
    from safetensors.torch import load_file

    run = make_run(method=Method.RTN)
    events = finish(run)
    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(model / "model.safetensors")[f"{name}.weight"]
    packed = stored_weight(Path(run.config().output), name)

    assert torch.equal(packed, round_to_nearest(weight, QuantSpec(4, 32, False)))
    assert not any(isinstance(event, FoldTested) for event in events)


@pytest.mark.parametrize("preset", list(Preset))
def test_every_preset_beats_plain_rounding(make_run: Callable[..., Run], preset: Preset):
    """Losses fall from step to step on the calibration text, and block outputs are nearer to the original's."""
    events = finish(make_run(preset=preset))
    linears = [event for event in events if isinstance(event, LinearQuantized)]
    assert all(event.host_bytes > 1 << 20 for event in linears)
    blocks = [event for event in events if isinstance(event, BlockFinished)]

    assert len(linears) == 14
    assert len(blocks) == 2
    assert all(block.loss_final < block.loss_rounding for block in blocks)
    assert sum(x.losses["scale"] for x in linears) < sum(x.losses["rounding"] for x in linears)
    expected = ["rounding", "scale", "clip"] + (["feedback"] if preset is not Preset.FAST else [])
    assert all(list(x.losses) == expected for x in linears)


def test_report_agrees_with_the_journal(make_run: Callable[..., Run]):
    """The report beside the weights holds one row per linear with the losses the journal told."""
    run = make_run()
    events = finish(run)
    rows = rows_of_report(read_report(Path(run.config().output)))
    told = {(event.block, event.name): event.losses for event in events if isinstance(event, LinearQuantized)}

    assert {(row.block, row.name): row.losses for row in rows} == told
    assert replay(run.records()).fraction() == 1.0
    assert run.status() is RunStatus.DONE


def test_same_run_twice_gives_the_same_bytes(make_run: Callable[..., Run], tmp_path: Path):
    """Nothing in the output depends on the clock or on chance."""
    for name in ("one", "two"):
        finish(make_run(output=str(tmp_path / name), preset=Preset.BEST))

    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two")


def test_cancel_keeps_finished_blocks(make_run: Callable[..., Run]):
    """A cancelled run stops between steps, leaves no output, and resumes from its last finished block."""
    run = make_run()
    stop_after_block(run, 0)
    assert not Path(run.config().output).exists()
    events = finish(run)

    assert [event.block for event in events if isinstance(event, BlockFinished)] == [0, 1]


def test_damaged_block_is_done_again(make_run: Callable[..., Run], tmp_path: Path):
    """A finished block whose file no longer has its checksum is quantized again."""
    finish(make_run(output=str(tmp_path / "good")))
    run = make_run(output=str(tmp_path / "bad"))

    file = run.path / stop_after_block(run, 1).file
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    finish(run)

    assert weights_of(tmp_path / "bad") == weights_of(tmp_path / "good")


def test_resume_refuses_a_changed_model(make_run: Callable[..., Run], tmp_path: Path):
    """Half of one model and half of another is never written."""
    model = write_tiny_model(tmp_path / "model")
    run = make_run(model=str(model))
    run.request_cancel()
    with Journal(run.journal_path) as emit, pytest.raises(InterruptedRunError):
        execute(run, emit)
    write_tiny_model(model, seed=1)
    run.clear_cancel()

    with Journal(run.journal_path) as emit, pytest.raises(BadInputError, match="model's files changed"):
        execute(run, emit)


def test_bfloat16_model(make_run: Callable[..., Run], tmp_path: Path):
    """A bfloat16 model's folded norms are stored in bfloat16, and the result still verifies."""
    model = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    run = make_run(model=str(model))
    events = finish(run)
    written = read_checkpoint(Path(run.config().output))

    assert written.tensors["model.layers.0.input_layernorm.weight"].dtype == "BF16"
    assert sum(isinstance(event, FoldTested) and event.accepted for event in events) == 8


def test_hidden_states_beyond_float16_are_warned_of(make_run: Callable[..., Run], tmp_path: Path):
    """Norms make such a model work in bfloat16; readers of the AWQ format compute in float16."""
    model = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 2**20
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    def warnings(**options: Any) -> list[str]:
        events = finish(make_run(model=str(model), output=str(tmp_path / options["format"]), **options))
        return [event.message for event in events if isinstance(event, Warned) and "float16" in event.message]

    assert len(warnings(format=Format.AWQ)) == 2
    assert warnings(format=Format.COMPRESSED_TENSORS) == []


def test_a_block_that_stays_as_it_is_under_best(make_run: Callable[..., Run]):
    """There is no gradient to ask for where nothing is rounded."""
    run = make_run(preset=Preset.BEST, overrides=("model.layers.0.*=skip",))
    result = [event.result for event in finish(run) if isinstance(event, RunFinished)]

    assert result[0]["linears"] == 7


def test_gradients_that_memory_is_too_small_for_end_the_run(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    """Going on without them would make other weights than a resumed run that finds the memory."""

    def too_much(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("awq_engine.sensitivity.capture_inputs", too_much)
    with pytest.raises(RuntimeError, match="allocate"):
        finish(make_run(preset=Preset.BEST))


def test_several_shards(make_run: Callable[..., Run], model: Path, monkeypatch: pytest.MonkeyPatch):
    """Large outputs are split, and the index names every tensor."""
    monkeypatch.setattr("awq_engine.writer.SHARD_BYTES", 100_000)
    run = make_run()
    finish(run)
    output = Path(run.config().output)
    index = json.loads((output / "model.safetensors.index.json").read_text())

    assert len(set(index["weight_map"].values())) > 1
    assert read_checkpoint(output).nbytes == index["metadata"]["total_size"]


def test_not_a_number_in_a_weight(make_run: Callable[..., Run], tmp_path: Path):
    """A damaged weight is named before anything is computed with it."""
    model = write_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run = make_run(model=str(model))

    with Journal(run.journal_path) as emit, pytest.raises(BadInputError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        execute(run, emit)


def test_group_size_that_does_not_divide(make_run: Callable[..., Run]):
    """The layer is named, and the group sizes that would work."""
    run = make_run(group_size=128)

    with Journal(run.journal_path) as emit, pytest.raises(BadInputError, match=r"64 inputs of .*: 32, 64, -1"):
        execute(run, emit)


def test_unstorable_linears_are_skipped_and_listed(make_run: Callable[..., Run], tmp_path: Path):
    """A linear whose outputs do not fill whole words stays as it is and is named in the config."""
    model = write_tiny_model(tmp_path / "model", intermediate_size=172)
    run = make_run(model=str(model), group_size=-1)
    finish(run)
    written = read_checkpoint(Path(run.config().output))

    assert "model.layers.0.mlp.up_proj.weight" in written.tensors
    assert "model.layers.0.mlp.up_proj" in (written.quantization or {})["modules_to_not_convert"]


def test_fold_that_changes_the_function_is_undone(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    """The invariance check after a fold catches what probing missed; the fold is undone, said, and the run verifies."""
    divide = block_folds.divide_producer

    def wrong_for_norms(block, fold, channel_scale, dtype=None):
        effective = divide(block, fold, channel_scale, dtype)
        return effective * 1.01 if "norm" in fold.producer else effective

    monkeypatch.setattr(block_folds, "divide_producer", wrong_for_norms)
    run = make_run()
    finish(run)
    state = replay(run.records())

    assert {fold.producer for fold in state.folds} == {"self_attn.v_proj", "mlp.up_proj"}
    assert any("undone" in warning and "input_layernorm" in warning for warning in state.warnings)
    assert state.layers[0, "self_attn.q_proj"].quantized.alpha is None


def test_block_worse_than_rounding_falls_back(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    """When the searches make a block worse, it is written with plain rounding of the original weights, and said so."""

    def far_too_much(weight: torch.Tensor, *_: object) -> tuple[QParams, float]:
        low, high = group_ranges(weight, SPEC)
        return choose_qparams(low * 0.2, high * 0.2, SPEC), 1.0

    monkeypatch.setattr(linear_rounding, "choose_clip", far_too_much)
    run = make_run()
    finish(run)
    state = replay(run.records())
    name = "model.layers.1.mlp.down_proj"
    source = load_file(Path(run.config().model) / "model.safetensors")[f"{name}.weight"]

    assert [item.block for item in state.fallbacks] == [0, 1]
    assert state.layers[0, "mlp.up_proj"].loss_ratio == 1
    assert state.layers[0, "mlp.up_proj"].scale is None
    written = stored_weight(Path(run.config().output), name)
    assert torch.equal(written, round_to_nearest(source, QuantSpec(4, 32, False)))


def test_no_graph_is_built(make_run: Callable[..., Run]):
    """Autograd is off for the whole run: a graph over the hidden states would keep every block's activations alive."""
    run = make_run()
    enabled: list[bool] = []

    class Watching(Journal):
        def __call__(self, event: Event) -> None:
            enabled.append(torch.is_grad_enabled())
            super().__call__(event)

    with Watching(run.journal_path) as emit:
        execute(run, emit)

    assert enabled
    assert not any(enabled)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_older_model_gives_way_to_the_new_one(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
):
    """In one step, and on file systems that know none in two; nothing is left of it."""
    if not at_once:
        monkeypatch.setattr("awq_engine.writer.exchange", lambda first, second: False)
    output = tmp_path / "out"
    finish(make_run(output=str(output), group_size=64))
    (output / "old").touch()
    finish(make_run(output=str(output), overwrite=True))

    assert read_report(output)["result"]["group_size"] == 32
    assert not (output / "old").exists()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_block_is_as_it_was_after_an_error_in_it(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch):
    """A GPU that is full in the middle of a block: the block is done again with fewer sequences at a time."""
    run, forward, calls = make_run(), BlockInputs.output, iter(range(10**9))

    def output(self: BlockInputs, block: Any, index: int, batch: int, **options: Any) -> Any:
        if next(calls) > 9 and len(self.hidden[batch]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, block, index, batch, **options)

    monkeypatch.setattr(BlockInputs, "output", output)
    finish(run)

    assert any("2 sequences at a time" in warning for warning in replay(run.records()).warnings)


def test_two_runs_never_replace_each_other(make_run: Callable[..., Run]):
    """The second of two runs with one output ends with a sentence; the first one's model stays."""
    first, second = make_run(), make_run()

    class FinishTheOtherFirst(Journal):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Verified):
                finish(first)

    with FinishTheOtherFirst(second.journal_path) as emit, pytest.raises(UsageError, match="exists already"):
        execute(second, emit)
    output = Path(first.config().output)

    assert read_report(output)["result"]["run_id"] == first.id
    assert [path.name for path in output.parent.glob(".*")] == []


def test_infinite_value_outside_the_blocks(make_run: Callable[..., Run], tmp_path: Path):
    """The final norm and the embeddings are looked at before any block is quantized."""
    model = write_tiny_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run = make_run(model=str(model))

    with Journal(run.journal_path) as emit, pytest.raises(BadInputError, match=r"model\.norm\.weight"):
        execute(run, emit)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 3), ("hidden_size", 128), ("vocab_size", 100)])
def test_config_that_does_not_fit_the_weights(make_run: Callable[..., Run], tmp_path: Path, key: str, value: int):
    """Missing and misshapen tensors are found while planning, and named."""
    model = write_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    run = make_run(model=str(model))

    with Journal(run.journal_path) as emit, pytest.raises(BadInputError, match=r"tensor '?model\."):
        execute(run, emit)
    assert not any(record.event.kind() == "calibration_ready" for record in run.records())


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(Preset.FAST, marks=pytest.mark.slow),
        Preset.BALANCED,
        pytest.param(Preset.BEST, marks=pytest.mark.slow),
    ],
)
def test_hidden_states_on_disk_change_nothing(make_run: Callable[..., Run], tmp_path: Path, preset: Preset):
    """The same bytes with hidden states in memory, on disk, and on disk after a resume; nothing is left there."""
    finish(make_run(output=str(tmp_path / "memory"), preset=preset, max_memory=1 << 60))
    disk = make_run(output=str(tmp_path / "disk"), preset=preset, max_memory=1)

    stop_after_block(disk, 0)
    finish(disk)

    assert weights_of(tmp_path / "disk") == weights_of(tmp_path / "memory")
    assert any("kept on disk" in warning for warning in replay(disk.records()).warnings)


def test_a_run_with_the_name_of_a_deleted_one_is_done(make_run: Callable[..., Run]):
    """Names tell seconds; the output of the deleted run says that it is this one's."""
    first = make_run()
    finish(first)
    first.remove()
    second = make_run(overwrite=True, group_size=64)
    second.path.rename(first.path)
    events = finish(first)

    assert any(isinstance(event, LinearQuantized) for event in events)
    assert read_report(Path(first.config().output))["result"]["group_size"] == 64


def test_engine_that_died_after_publishing_leaves_no_blocks(make_run: Callable[..., Run]):
    """Resumed, it only says that it is done, and clears away what it had no time for."""
    run = make_run()

    class DieBeforeSaying(Journal):
        def __call__(self, event: Event) -> None:
            if isinstance(event, RunFinished):
                raise KeyboardInterrupt
            super().__call__(event)

    with DieBeforeSaying(run.journal_path) as emit, pytest.raises(KeyboardInterrupt):
        execute(run, emit)
    assert run.blocks_dir.exists()
    events = finish(run)

    assert isinstance(events[-1], RunFinished)
    assert not run.blocks_dir.exists()
