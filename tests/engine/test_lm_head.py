"""The output head quantized too: the last unit of a run, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from awq_engine import outer, quantize_head
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, Method, Preset, RunConfig
from awq_engine.convert import convert
from awq_engine.errors import BadInputError, InterruptedRunError
from awq_engine.estimate import estimate
from awq_engine.events import BlockFinished, Event, LinearQuantized, Verified
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.plan import describe
from awq_engine.quantize_head import HeadStatistics
from awq_engine.runs import create_run
from awq_engine.runtime import load_dequantized, load_model
from awq_engine.statistics import InputStatistics

BLOCKS = 2
IDS = torch.arange(3, 67).view(1, 64)
pytestmark = pytest.mark.filterwarnings("ignore")  # of compressed-tensors


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("untied"), dtype=torch.bfloat16, tie_word_embeddings=False)


@pytest.fixture
def config_of(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A request on the untied model; keyword arguments go to `RunConfig`."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    text = tmp_path / "text.txt"
    text.write_text("A bird looked at the river and thought of bread. Nobody knew why the door was open. " * 100)

    def make(**options: Any) -> RunConfig:
        settings = {
            "model": str(source), "output": str(tmp_path / "out"), "group_size": 32, "calibration": str(text),
            "samples": 4, "seq_len": 64, "device": "cpu", "lm_head": True, **options,
        }  # fmt: skip
        return RunConfig(**settings)

    return make


def finish(config: RunConfig, stop_after: int | None = None) -> list[Event]:
    """Execute the request; with `stop_after` the first process ends when that block is announced."""
    run = create_run(config)
    with Journal(run.journal_path) as journal:

        def emit(event: Event) -> None:
            journal(event)
            if isinstance(event, BlockFinished) and event.block == stop_after:
                raise InterruptedRunError("stopped by the test")

        if stop_after is not None:
            with pytest.raises(InterruptedRunError):
                execute(run, emit)
        execute(run, journal)
    return [record.event for record in run.records()]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.Module.float(model)(IDS).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert torch.allclose(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (Format.AWQ, {}),
        (Format.AWQ, {"preset": Preset.FAST}),
        (Format.GPTQ, {"bits": 3, "preset": Preset.BEST}),
        (Format.GPTQ_V2, {"method": Method.RTN}),
        (Format.COMPRESSED_TENSORS, {"bits": 8, "symmetric": True}),
    ],
    ids=str,
)
def test_the_head_is_packed_and_read_back(config_of: Callable[..., RunConfig], layout: Format, options: dict[str, Any]):
    events = finish(config := config_of(format=layout, **options))
    written, output = read_checkpoint(Path(config.output)), Path(config.output)
    dequantized, computed = load_dequantized(output, device="cpu"), load_model(output, backend="reference")
    done = [e for e in events if isinstance(e, LinearQuantized) and e.name == "lm_head"]
    result = json.loads((output / "quantization_report.json").read_text())

    assert "lm_head.weight" not in written.tensors
    assert dequantized.quantized == computed.quantized == 7 * BLOCKS + 1
    assert_close(logits(computed.model), logits(dequantized.model), 1e-5)
    assert next(e for e in events if isinstance(e, Verified)).max_logit_difference < 1e-4
    assert [(e.block, e.out_features, e.in_features, e.tokens) for e in done] == [(BLOCKS, 2048, 64, 256)]
    losses = [*done[0].losses.values()]
    assert losses[-1] < losses[0] or options.get("method") is Method.RTN
    assert (result["result"]["blocks"], result["result"]["lm_head"]) == (BLOCKS, True)
    assert result["layers"][-1]["name"] == "lm_head"


def test_drift_and_feedback_bring_the_logits_closer(config_of: Callable[..., RunConfig], source: Path, tmp_path: Path):
    """Than the same blocks with a head that is merely rounded bring them."""
    finish(config_of(output=str(tmp_path / "ours"), samples=32))
    ours = load_dequantized(tmp_path / "ours", device="cpu").model
    original = load_model(source, device="cpu", dtype=torch.float32).model
    weight = original.get_output_embeddings().weight.data
    sentence = "Nobody thought of bread. A bird looked at the door and knew why the river was open. "
    ids = load_model(source, device="cpu").tokenizer(sentence, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted, ours_loss = original(ids).logits, (ours(ids).logits - original(ids).logits).square().mean()
        ours.get_output_embeddings().weight = torch.nn.Parameter(
            quantize_head.round_to_nearest(weight, quantize_head.QuantSpec(4, 32, symmetric=False))
        )
        assert ours_loss < (ours(ids).logits - wanted).square().mean()


def test_transformers_reads_it_in_compressed_tensors(config_of: Callable[..., RunConfig]):
    finish(config := config_of(format=Format.COMPRESSED_TENSORS, symmetric=True))
    theirs = AutoModelForCausalLM.from_pretrained(config.output, dtype=torch.bfloat16).eval()
    asymmetric = CompressedTensorsConfig(dequantize=True)
    unpacked = AutoModelForCausalLM.from_pretrained(
        config.output, dtype=torch.bfloat16, quantization_config=asymmetric
    ).eval()
    ours = load_dequantized(Path(config.output), device="cpu").model
    with torch.no_grad():
        theirs(IDS)  # decompresses

    for model in (theirs, unpacked):
        weight = model.get_output_embeddings().weight
        assert torch.equal(weight, ours.get_output_embeddings().weight.bfloat16())
        assert_close(logits(model), logits(ours), 16 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("stop_after", [BLOCKS - 1, BLOCKS])
@pytest.mark.parametrize("layout", [Format.AWQ, Format.COMPRESSED_TENSORS])
def test_a_resumed_run_writes_the_same_bytes(config_of: Callable[..., RunConfig], layout: Format, stop_after: int):
    """Stopped between the last block and the head, and between the head and the output."""
    outputs = []
    for stop in (None, stop_after):
        finish(config_of(output=f"{config_of().output}-{stop}", format=layout), stop)
        outputs.append(Path(f"{config_of().output}-{stop}", "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_rows_are_worked_on_some_at_a_time(config_of: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outer, "CHUNK_BYTES", 500 * 64 * 2)
    rows: list[int] = []
    whole = quantize_head.round_rows
    monkeypatch.setattr(quantize_head, "round_rows", lambda w, *rest: rows.append(len(w)) or whole(w, *rest))
    events = finish(config_of())

    assert rows == [500, 500, 500, 500, 48]
    assert next(e for e in events if isinstance(e, Verified)).max_logit_difference < 1e-4


def test_losses_are_those_of_the_logits():
    """Of rounded weights on drifted inputs, computed in full and from the three matrices."""
    torch.manual_seed(0)
    before, weight, rounded = torch.randn(400, 16), torch.randn(24, 16), torch.randn(24, 16)
    now = before + 0.3 * torch.randn(400, 16)
    drift = now - before
    inputs = InputStatistics(now.T @ now / 400, now.abs().mean(0), 400)
    statistics = HeadStatistics(inputs, (drift.T @ now / 400, drift.T @ drift / 400))
    expected = (now @ rounded.T - before @ weight.T).square().mean()
    correction = statistics.correction()

    assert statistics.loss(rounded, weight) == pytest.approx(float(expected), rel=1e-4)
    assert correction is not None
    assert statistics.loss(weight @ correction, weight) < 0.99 * statistics.loss(weight, weight)


def test_a_tied_head_is_refused(config_of: Callable[..., RunConfig], tmp_path: Path):
    tied = write_tiny_model(tmp_path / "tied")
    with pytest.raises(BadInputError, match=r"no weight of its own to pack.*leave out --lm-head"):
        finish(config_of(model=str(tied)))
    assert any("--lm-head" in problem for problem in estimate(read_checkpoint(tied), config_of()).problems)


def test_a_head_that_the_format_cannot_hold_is_refused(config_of: Callable[..., RunConfig], tmp_path: Path):
    odd = write_tiny_model(tmp_path / "odd", tie_word_embeddings=False, vocab_size=2051)
    with pytest.raises(BadInputError, match="lm_head cannot be quantized: its 2051 outputs"):
        finish(config_of(model=str(odd)))


def test_the_plan_and_the_forecast_count_it(config_of: Callable[..., RunConfig], source: Path):
    plan, forecast = describe(config_of()), estimate(read_checkpoint(source), config_of())
    without = estimate(read_checkpoint(source), config_of(lm_head=False))
    finish(config_of())

    assert plan["linears"][-1]["block"] == plan["n_blocks"] == forecast.n_blocks == without.n_blocks == BLOCKS
    assert plan["bytes_after"] == forecast.bytes_after == read_checkpoint(Path(config_of().output)).nbytes
    assert forecast.n_linears == without.n_linears + 1
    assert forecast.bytes_after < without.bytes_after


def test_overrides_of_the_head(config_of: Callable[..., RunConfig]):
    """Its own bits, or left out; without the flag an override of the head alone is refused."""
    mixed = config_of(format=Format.COMPRESSED_TENSORS, overrides=("lm_head=bits:8,group:64",))
    finish(mixed)
    stated = read_checkpoint(Path(mixed.output)).quantization
    assert stated is not None
    assert stated["config_groups"]["group_1"]["targets"] == [r"re:(?:.*\.)?lm_head$"]
    assert stated["ignore"] == []

    assert ["lm_head", "left out by the override lm_head=skip"] in describe(
        config_of(overrides=("lm_head=skip",), output=f"{mixed.output}-2")
    )["skipped"]
    alone = config_of(
        format=Format.GPTQ, overrides=("lm_head=bits:8",), lm_head=False, output=f"{mixed.output}-3"
    )  # fmt: skip
    with pytest.raises(BadInputError, match=r"names the output head, which stays in floats; .* --lm-head"):
        describe(alone)


def test_a_size_to_meet_does_not_count_it(config_of: Callable[..., RunConfig]):
    events = finish(config := config_of(format=Format.COMPRESSED_TENSORS, target_bpw=5.0))
    done = {(e.block, e.name): e for e in events if isinstance(e, LinearQuantized)}
    stated = read_checkpoint(Path(config.output)).quantization

    assert (BLOCKS, "lm_head") in done
    assert stated is not None
    of_head = [g for g in stated["config_groups"].values() if any("lm_head" in target for target in g["targets"])]
    assert [(g["weights"]["num_bits"], g["weights"]["group_size"]) for g in of_head] == [(4, 32)]


def test_convert_takes_it_along(config_of: Callable[..., RunConfig], tmp_path: Path):
    finish(config := config_of())
    expected = logits(load_dequantized(Path(config.output), device="cpu").model)
    folder = Path(config.output)
    for layout in (Format.COMPRESSED_TENSORS, Format.GPTQ_V2, Format.AWQ):
        converted = tmp_path / layout.value
        convert(folder, converted, layout, progress=lambda *_: None)
        assert torch.equal(logits(load_dequantized(converted, device="cpu").model), expected)
        folder = converted
    assert read_checkpoint(folder).quantization == read_checkpoint(Path(config.output)).quantization
