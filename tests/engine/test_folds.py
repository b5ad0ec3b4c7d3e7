"""Folds are found by probing, whatever the architecture, and only where they keep the function."""

from pathlib import Path

import pytest
import torch
from tiny_model import TINY, write_tiny_model
from torch import nn
from transformers import (
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from awq_engine.architecture import value_dim
from awq_engine.capture import capture_inputs
from awq_engine.checkpoint import read_checkpoint
from awq_engine.folds import Fold, FoldKind, Probe, divide_producer, find_fold, input_groups, scale_consumers
from awq_engine.skeleton import build_skeleton

IDS = torch.arange(3, 35).view(1, 32)
SMALL = {key: value for key, value in TINY.items() if key != "tie_word_embeddings"}


def probes_of(folder: Path, block: int = 1) -> dict[str, Probe]:
    """The outcome of the search for every group of one block, by its first consumer."""
    skeleton = build_skeleton(read_checkpoint(folder))
    inputs = capture_inputs(skeleton, [IDS])
    with torch.no_grad(), skeleton.loaded_block(block) as module:

        def forward() -> torch.Tensor:
            return next(inputs.outputs(module, block))

        names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
        groups = input_groups(module, names, forward)
        return {
            group.consumers[0]: find_fold(module, group, forward, value_dim(module, skeleton.model.config))
            for group in groups
        }


def test_llama(tmp_path: Path):
    """Norms before attention and MLP, values shared between heads, and up before down."""
    found = probes_of(write_tiny_model(tmp_path))
    producers = {first: probe.fold.producer for first, probe in found.items() if probe.fold}

    assert producers == {
        "self_attn.q_proj": "input_layernorm",
        "self_attn.o_proj": "self_attn.v_proj",
        "mlp.gate_proj": "post_attention_layernorm",
        "mlp.down_proj": "mlp.up_proj",
    }
    shared = found["self_attn.o_proj"].fold
    assert shared is not None
    assert (shared.repeat, shared.head_dim, shared.width) == (2, 16, 32)


ARCHITECTURES: dict[str, tuple[PreTrainedConfig, dict[str, tuple[str, FoldKind]]]] = {
    "gemma2, whose norms multiply by 1 + weight and wrap both sides": (
        Gemma2Config(**SMALL, head_dim=16),
        {
            "self_attn.q_proj": ("input_layernorm", FoldKind.UNIT_OFFSET_NORM),
            "self_attn.o_proj": ("self_attn.v_proj", FoldKind.ROWS),
            "mlp.gate_proj": ("pre_feedforward_layernorm", FoldKind.UNIT_OFFSET_NORM),
            "mlp.down_proj": ("mlp.up_proj", FoldKind.ROWS),
        },
    ),
    "phi3, whose projections are fused": (
        Phi3Config(**SMALL),
        {
            "self_attn.qkv_proj": ("input_layernorm", FoldKind.NORM),
            "self_attn.o_proj": ("self_attn.qkv_proj", FoldKind.ROWS),
            "mlp.gate_up_proj": ("post_attention_layernorm", FoldKind.NORM),
            "mlp.down_proj": ("mlp.gate_up_proj", FoldKind.ROWS),
        },
    ),
    "qwen2, with biases": (
        Qwen2Config(**SMALL),
        {
            "self_attn.q_proj": ("input_layernorm", FoldKind.NORM),
            "self_attn.o_proj": ("self_attn.v_proj", FoldKind.ROWS),
            "mlp.gate_proj": ("post_attention_layernorm", FoldKind.NORM),
            "mlp.down_proj": ("mlp.up_proj", FoldKind.ROWS),
        },
    ),
    "cohere, whose attention and MLP read one norm": (
        CohereConfig(**SMALL),
        {
            "self_attn.q_proj": ("input_layernorm", FoldKind.NORM),
            "self_attn.o_proj": ("self_attn.v_proj", FoldKind.ROWS),
            "mlp.down_proj": ("mlp.up_proj", FoldKind.ROWS),
        },
    ),
    "gpt_neox, whose queries, keys and values lie together head by head": (
        GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
        {"attention.dense": ("attention.query_key_value", FoldKind.ROWS)},
    ),
    "falcon, where several heads of queries lie with the keys and values they share": (
        FalconConfig(
            vocab_size=2048, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
            new_decoder_architecture=True,
        ),
        {"self_attention.dense": ("self_attention.query_key_value", FoldKind.ROWS)},
    ),
    "deepseek, whose keys and values come from a latent": (
        DeepseekV3Config(
            **{**SMALL, "num_key_value_heads": 4}, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=8,
            qk_nope_head_dim=24, v_head_dim=16, first_k_dense_replace=2,
        ),
        {
            "self_attn.o_proj": ("self_attn.kv_b_proj", FoldKind.ROWS),
            "self_attn.kv_b_proj": ("self_attn.kv_a_layernorm", FoldKind.NORM),
        },
    ),
    "opt, with ReLU between its two layers": (
        OPTConfig(
            vocab_size=2048, hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128, dropout=0.0,
        ),
        {
            "self_attn.q_proj": ("self_attn_layer_norm", FoldKind.NORM),
            "self_attn.out_proj": ("self_attn.v_proj", FoldKind.ROWS),
            "fc1": ("final_layer_norm", FoldKind.NORM),
            "fc2": ("fc1", FoldKind.ROWS),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_nobody_tabled(name: str, tmp_path: Path):
    """Every fold of these families is discovered, with the right kind."""
    config, expected = ARCHITECTURES[name]
    found = probes_of(write_tiny_model(tmp_path, config))

    folds = {first: (probe.fold.producer, probe.fold.kind) for first, probe in found.items() if probe.fold}
    assert {first: folds.get(first) for first in expected} == expected


class _Delayed(nn.Module):
    """Two linears of one input, of which one reads another tensor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.later = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.now(x) + self.later(x) + self.later(x.roll(1, 1))


def test_a_linear_is_in_one_group():
    """What it reads is not what any other reads."""
    block, x = _Delayed().requires_grad_(False), torch.randn(2, 8, 32)

    assert [g.consumers for g in input_groups(block, ["now", "later"], lambda: block(x))] == [("now",), ("later",)]


class _Routed(nn.Module):
    """A norm read by a linear and, unscaled, by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.router = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.up(y) * self.router(y).sigmoid()


def test_second_reader_forbids_the_fold():
    """A norm with another reader that is not scaled along is no producer; scaling both readers is fine."""
    torch.manual_seed(0)
    block, x = _Routed().requires_grad_(False), torch.randn(2, 8, 32)
    (alone,) = input_groups(block, ["up"], lambda: block(x))
    (both,) = input_groups(block, ["up", "router"], lambda: block(x))

    assert find_fold(block, alone, lambda: block(x), 1).fold is None
    assert find_fold(block, both, lambda: block(x), 1).fold is not None


def test_rounded_norm_keeps_the_function(tmp_path: Path):
    """With a norm stored in bfloat16, the consumers' scale follows the rounded norm, so nothing is lost to rounding."""
    torch.manual_seed(0)
    block, x = _Routed().requires_grad_(False), torch.randn(2, 8, 32)
    block.norm.weight.copy_((1 + 0.2 * torch.randn(32)).bfloat16())
    block.norm.bias.zero_()
    (group,) = input_groups(block, ["up", "router"], lambda: block(x))
    fold = find_fold(block, group, lambda: block(x), 1).fold
    assert fold is not None
    before = block(x)
    effective = divide_producer(block, fold, torch.rand(32) + 0.5, torch.bfloat16)
    scale_consumers(block, fold, effective)

    assert torch.equal(block.norm.weight, block.norm.weight.bfloat16().float())
    assert torch.allclose(block(x), before, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_norm_with_a_bias_keeps_the_function(dtype: torch.dtype):
    """One scale per channel cannot suit two rounded values; among the scales near by there is one that does."""
    torch.manual_seed(0)
    block, x = _Routed().requires_grad_(False), torch.randn(2, 8, 32)
    block.norm.weight.copy_((1 + 0.2 * torch.randn(32)).to(dtype))
    block.norm.bias.copy_((0.5 * torch.randn(32)).to(dtype))
    (group,) = input_groups(block, ["up", "router"], lambda: block(x))
    fold = find_fold(block, group, lambda: block(x), 1).fold
    assert fold is not None
    before, wanted = block(x), torch.rand(32) * 3 + 0.5
    effective = divide_producer(block, fold, wanted, dtype)
    scale_consumers(block, fold, effective)

    assert torch.equal(block.norm.bias, block.norm.bias.to(dtype).float())
    assert (effective / wanted - 1).abs().max() < 0.15
    assert (block(x) - before).norm() < 1e-4 * (before - x).norm()


def test_rounded_bias_of_a_linear_keeps_the_function():
    torch.manual_seed(0)
    block, x = _Clamped().requires_grad_(False), torch.randn(2, 8, 32) / 8
    block.v.bias.copy_(block.v.bias.bfloat16())
    block.v.bias[3] = 0
    before = block(x)
    fold = Fold("v", ("o",), FoldKind.ROWS, 32)
    wanted = torch.rand(32) * 3 + 0.5
    effective = divide_producer(block, fold, wanted, torch.bfloat16)
    scale_consumers(block, fold, effective)

    assert torch.equal(block.v.bias, block.v.bias.bfloat16().float())
    assert torch.allclose(effective, wanted, rtol=0.01)
    assert torch.allclose(block(x), before, atol=1e-6)


class _Exploding(nn.Module):
    """Two readers of one norm, of which one makes so much of a disturbance that the other's is lost in it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.quiet, self.loud = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.quiet(y * 1.0) + 0.01 * self.loud(y) ** 9


def test_a_loud_reader_does_not_hide_a_quiet_one():
    torch.manual_seed(0)
    block, x = _Exploding().requires_grad_(False), torch.randn(2, 8, 32)
    loud = next(g for g in input_groups(block, ["quiet", "loud"], lambda: block(x)) if "loud" in g.consumers)

    assert loud.consumers == ("loud",)
    assert find_fold(block, loud, lambda: block(x), 1).fold is None


def test_probing_leaves_no_trace(tmp_path: Path):
    """Weights are the same bits after the search."""
    torch.manual_seed(0)
    block, x = _Routed().requires_grad_(False), torch.randn(2, 8, 32)
    saved = {name: p.clone() for name, p in block.named_parameters()}
    for group in input_groups(block, ["up", "router"], lambda: block(x)):
        find_fold(block, group, lambda: block(x), 1)

    assert all(torch.equal(p, saved[name]) for name, p in block.named_parameters())


class _Clamped(nn.Module):
    """A clamp between two linears that ordinary values hardly reach."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.o = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.o(self.v(x).clamp(-8, 8))


def test_a_clamp_forbids_the_fold():
    """Larger values than these would meet it."""
    torch.manual_seed(0)
    block, x = _Clamped().requires_grad_(False), torch.randn(2, 8, 32)
    (group,) = input_groups(block, ["o"], lambda: block(x))

    assert block.v(x).abs().max() < 4
    assert find_fold(block, group, lambda: block(x), 1).fold is None
