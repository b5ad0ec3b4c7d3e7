"""Mixtures of experts in the quantizer: folds through routers, tokens per expert, experts that saw none, passes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_linearize import HEADS, IDS, LATENT, SIZES
from tiny_model import write_tiny_model
from torch import nn
from transformers import DeepseekV3Config, MixtralConfig, PreTrainedConfig, Qwen2MoeConfig

from awq_engine.capture import BlockInputs, capture_inputs
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Preset
from awq_engine.drift import as_they_are
from awq_engine.events import Event, FoldTested, LinearQuantized, Verified, Warned
from awq_engine.folds import Fold, FoldKind, divide_producer, scale_consumers
from awq_engine.originals import Originals
from awq_engine.passes import Passes
from awq_engine.readers import find_readers
from awq_engine.routing import ExpertPairs, ReadExpertPairs
from awq_engine.skeleton import build_skeleton
from awq_engine.workers import ALONE
from tests.engine.tiny_run import executed, tiny_request

NORM = "post_attention_layernorm"
EXPERTS, TOP_K = 4, 2
MIXTRAL = MixtralConfig(**{**SIZES, "num_hidden_layers": 1}, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K)
SHARED = Qwen2MoeConfig(
    **{**SIZES, "num_hidden_layers": 1}, num_experts=EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=64,
    shared_expert_intermediate_size=64,
)  # fmt: skip
DEEPSEEK = DeepseekV3Config(
    **{**HEADS, "num_hidden_layers": 1}, **LATENT, n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K, n_group=1,
    topk_group=1, moe_intermediate_size=64, first_k_dense_replace=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def quantized(folder: Path, preset: Preset = Preset.FAST) -> list[Event]:
    """Quantize the model in `folder` into `folder`/out; the events of the run."""
    return [record.event for record in executed(tiny_request(folder, folder, preset=preset)).records()]


@pytest.mark.parametrize(
    ("config", "routers"),
    [(MIXTRAL, {"mlp.gate"}), (SHARED, {"mlp.gate", "mlp.shared_expert_gate"}), (DEEPSEEK, {"mlp.gate"})],
    ids=["mixtral", "qwen2_moe", "deepseek_v3"],
)
@torch.no_grad()
def test_norm_folds_into_all_its_readers(config: PreTrainedConfig, routers: set[str], tmp_path: Path):
    """With powers of two the block's output stays the same to the last bit, weights in bfloat16 included."""
    skeleton = build_skeleton(read_checkpoint(write_tiny_model(tmp_path, config, dtype=torch.bfloat16)))
    inputs = capture_inputs(skeleton, [IDS])
    with skeleton.loaded_block(0) as block:
        before = next(inputs.outputs(block, 0))
        readers = find_readers(block, NORM, FoldKind.NORM, lambda: next(inputs.outputs(block, 0)))
        fold = Fold(NORM, tuple(readers), FoldKind.NORM, 64)
        scale = torch.exp2(torch.randint(-3, 4, (64,)).float())
        scale_consumers(block, fold, divide_producer(block, fold, scale, torch.bfloat16))

        assert torch.equal(next(inputs.outputs(block, 0)), before)
        assert all(torch.equal(p, p.to(torch.bfloat16).float()) for p in block.parameters())
        assert {name for name in readers if ".experts." not in name and "_proj" not in name} == routers
        assert not find_readers(block, "input_layernorm", FoldKind.UNIT_OFFSET_NORM, lambda: before)


def test_router_is_multiplied_as_the_norm_is_divided(tmp_path: Path):
    """What is written routes as the original: exponents changed in the norm and the router, and nothing else."""
    events = quantized(write_tiny_model(tmp_path, MIXTRAL, dtype=torch.bfloat16))
    source, output = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    norm, gate = f"model.layers.0.{NORM}.weight", "model.layers.0.block_sparse_moe.gate.weight"
    scale = source[norm].float() / output[norm].float()

    assert any(isinstance(e, FoldTested) and e.accepted and len(e.consumers) == 2 * EXPERTS for e in events)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert not torch.equal(scale, torch.ones(64))
    assert torch.equal(output[gate].float(), source[gate].float() * scale)
    assert "model.layers.0.block_sparse_moe.experts.3.w2.qweight" in output


@pytest.mark.parametrize("preset", list(Preset))
def test_tokens_of_every_expert_are_counted(tmp_path: Path, preset: Preset):
    """Each token goes to `TOP_K` experts, and both halves of an expert read the same."""
    events = quantized(write_tiny_model(tmp_path, MIXTRAL), preset)
    tokens = {e.name: e.tokens for e in events if isinstance(e, LinearQuantized)}

    for linear in ("gate_proj", "up_proj", "down_proj"):
        assert sum(tokens[f"mlp.experts.{e}.{linear}"] or 0 for e in range(EXPERTS)) == TOP_K * 4 * 64
    assert tokens["self_attn.q_proj"] == 4 * 64
    assert any(isinstance(event, Verified) for event in events)


@pytest.mark.parametrize("preset", [Preset.FAST, Preset.BEST])
def test_experts_without_tokens(tmp_path: Path, preset: Preset):
    """They are rounded by what their siblings read, and a warning says so; the checkpoint is complete."""
    write_tiny_model(tmp_path, DEEPSEEK)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.gate.e_score_correction_bias"][2] = -1e4
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    events = quantized(tmp_path, preset)
    warnings = [e.message for e in events if isinstance(e, Warned)]
    tokens = {e.name: e.tokens for e in events if isinstance(e, LinearQuantized)}

    assert tokens["mlp.experts.2.up_proj"] == tokens["mlp.experts.2.down_proj"] == 0
    assert any("1 of 4 experts (2)" in w and "are rounded by what all experts read" in w for w in warnings)
    assert any("1 of 4 experts (2)" in w and "as if all its inputs were alike" in w for w in warnings)
    assert "model.layers.0.mlp.experts.2.down_proj.qweight" in load_file(tmp_path / "out" / "model.safetensors")
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert {row["name"]: row["tokens"] for row in report["layers"]} == tokens


@pytest.mark.parametrize("preset", [Preset.BALANCED])
def test_passes_do_not_grow_with_the_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: Preset):
    passes: list[int] = []
    output = BlockInputs.output

    def counted(self: BlockInputs, *args: Any, **options: Any) -> torch.Tensor:
        passes[-1] += 1
        return output(self, *args, **options)

    monkeypatch.setattr(BlockInputs, "output", counted)
    for experts in (4, 16):
        passes.append(0)
        config = MixtralConfig(**{**SIZES, "num_hidden_layers": 1}, num_local_experts=experts, num_experts_per_tok=2)
        quantized(write_tiny_model(tmp_path / str(experts), config), preset)

    assert passes[0] == passes[1]


@torch.no_grad()
def test_drift_pairs_the_tokens_of_the_present_routing(tmp_path: Path):
    """Row by row the same token, although the original's router would send others."""
    skeleton = build_skeleton(read_checkpoint(write_tiny_model(tmp_path, MIXTRAL)))
    present, original = capture_inputs(skeleton, [IDS]), capture_inputs(skeleton, [IDS.flip(1)])
    with skeleton.loaded_block(0) as block:
        seen: list[tuple[torch.Tensor, ...]] = []
        look: Callable[..., None] = lambda _, args: seen.append(args)  # noqa: E731
        handle = block.get_submodule("mlp.experts").register_forward_pre_hook(look)
        for inputs in (present, original):
            next(inputs.outputs(block, 0))
        handle.remove()
        (x, picked, _), (old, other, _) = seen
        name = "mlp.experts.1.up_proj"
        passes = Passes(ALONE, block, 0, present, original, Originals(block))
        pairs = passes.add_up(ReadExpertPairs({name: as_they_are}), ExpertPairs())
        read, found = pairs.means(name, cast(nn.Linear, block.get_submodule(name)))
        rows = (picked == 1).any(-1)

        assert not torch.equal(rows, (other == 1).any(-1))
        assert found is not None
        torch.testing.assert_close(found, old[rows].T @ x[rows] / rows.sum())
        torch.testing.assert_close(read.gram, x[rows].T @ x[rows] / rows.sum())
        assert read.n_tokens == rows.sum()
