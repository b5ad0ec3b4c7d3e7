"""Conv1D layers and fused experts become linears that compute the same, whatever order their weights are stored in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import TINY, write_tiny_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DbrxConfig,
    DeepseekV3Config,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    JetMoeConfig,
    Llama4TextConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
)
from zoo import checkpoint_class, quiet, write_model

from awq_engine.capture import capture_inputs, finish_forward
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, RunConfig
from awq_engine.estimate import estimate
from awq_engine.linearize import is_plain
from awq_engine.plan import make_plan, refuse_mismatch
from awq_engine.skeleton import Skeleton, build_skeleton

SMALL = torch.arange(3, 35).view(1, 32)
IDS = (torch.arange(3, 35).view(1, 32) * 7) % 2000
SIZES: dict[str, Any] = {key: value for key, value in TINY.items() if key != "tie_word_embeddings"}
HEADS = {**SIZES, "num_key_value_heads": 4}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
KINDS: dict[str, PreTrainedConfig] = {
    "Conv1D": GPT2Config(vocab_size=2048, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=1),
    "experts stored one by one": MixtralConfig(**SIZES, num_local_experts=4),
    "a shared expert": Qwen2MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts_per_tok=2
    ),
    "a dense block before": DeepseekV3Config(
        **HEADS, **LATENT, n_routed_experts=4, moe_intermediate_size=64, n_group=2, topk_group=1,
        first_k_dense_replace=1, num_experts_per_tok=2,
    ),
    "interleaved with biases": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=16),
    "transposed": Llama4TextConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=128, head_dim=16
    ),
    "other names": GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "stacked rows": DbrxConfig(
        d_model=64, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=2048,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "lists of experts": JetMoeConfig(
        **{k: v for k, v in SIZES.items() if k != "num_attention_heads"}, kv_channels=16, num_local_experts=4
    ),
}  # fmt: skip


def write(kind: str, folder: Path) -> Path:
    """A random checkpoint; its biases are not zero."""
    write_tiny_model(folder, KINDS[kind])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def streamed(skeleton: Skeleton, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits of the linearized model, block by block."""
    hidden = capture_inputs(skeleton, [ids])
    for index in range(len(skeleton.blocks)):
        with skeleton.loaded_block(index) as block:
            hidden.advance(block, index)
    return finish_forward(skeleton, ids, hidden.hidden[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_stays_and_every_matrix_is_a_linear(kind: str, tmp_path: Path):
    folder = write(kind, tmp_path)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS).logits

    skeleton = build_skeleton(read_checkpoint(folder))

    torch.testing.assert_close(streamed(skeleton), expected, rtol=1e-5, atol=1e-5)
    linears = {name for name, module in skeleton.model.named_modules() if isinstance(module, nn.Linear)}
    matrices = {n.rpartition(".")[0] for n, p in skeleton.blocks.named_parameters() if p.ndim > 1}
    outside = {name for name in matrices if f"{skeleton.blocks_name}.{name}" not in linears}
    assert all("gate" in name or "router" in name for name in outside), outside  # those that pick the experts
    assert not any(p.ndim > 2 for p in skeleton.blocks.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_the_checkpoint_is_used_once(kind: str, tmp_path: Path):
    """The parts of a stored tensor do not overlap and leave nothing out."""
    folder = write(kind, tmp_path)
    skeleton = build_skeleton(read_checkpoint(folder))
    state = skeleton.model.state_dict()
    used: dict[str, torch.Tensor] = {}
    for name, source in skeleton.sources.items():
        info = skeleton.checkpoint.tensors[source.key]
        numbers = torch.arange(info.numel).view(info.shape)
        part = source.take(numbers, state[name].ndim)
        used[source.key] = torch.cat([used.get(source.key, torch.empty(0, dtype=torch.long)), part.flatten()])

    for key, info in skeleton.checkpoint.tensors.items():
        assert used[key].numel() == info.numel == used[key].unique().numel(), key


ROUTED: dict[str, tuple[PreTrainedConfig, str]] = {
    "a linear that returns two things": (
        Llama4TextConfig(
            **SIZES, num_local_experts=8, num_experts_per_tok=1, intermediate_size_mlp=128, head_dim=16,
            moe_layers=[0, 1],
        ),
        "feed_forward.router",
    ),
    "an ordinary linear": (
        DbrxConfig(
            d_model=64, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=2048,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2},
        ),
        "ffn.router.layer",
    ),
    "a gate of the shared expert": (
        Qwen2MoeConfig(
            **SIZES, num_experts=8, moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts_per_tok=2
        ),
        "mlp.shared_expert_gate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROUTED)
def test_what_picks_experts_stays(kind: str, tmp_path: Path):
    """Also where the format could hold it: servers that know the mixture expect it in floats."""
    config, router = ROUTED[kind]
    write_tiny_model(tmp_path, config)
    skeleton = build_skeleton(read_checkpoint(tmp_path))
    options = RunConfig(
        model=str(tmp_path), output=str(tmp_path / "out"), group_size=32, format=Format.COMPRESSED_TENSORS
    )
    plan = make_plan(options, skeleton)

    assert isinstance(skeleton.blocks[0].get_submodule(router), nn.Linear)
    assert router not in {linear.name for linear in plan.linears}
    assert [reason for name, reason in plan.skipped if name.endswith(router)] == ["it picks experts"] * 2


class _Grouped(nn.Linear):
    """Multiplies each half of its weight by another part of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...gi,goi->...go", x, self.weight.unflatten(0, (2, -1)))


class _Spelled(nn.Linear):
    """What FalconLinear does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def test_linears_that_are_none():
    assert is_plain(nn.Linear(8, 6, device="meta"))
    assert is_plain(_Spelled(8, 6, device="meta"))
    assert not is_plain(_Grouped(8, 6, device="meta"))


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "inkling2_text", "zamba2", "prophetnet", "kimi_k25"])
def test_what_is_stored_otherwise_than_it_is_used(model_type: str, tmp_path: Path):
    """Experts transposed or interleaved, weights shared by blocks, a table read past its embedding, a fused tower."""
    quiet()
    folder = write_model(model_type, tmp_path)
    with torch.no_grad():
        expected = checkpoint_class(model_type).from_pretrained(folder, dtype=torch.float32)(input_ids=SMALL).logits

    skeleton = build_skeleton(read_checkpoint(folder))

    torch.testing.assert_close(streamed(skeleton, SMALL), expected, rtol=1e-5, atol=1e-5)
    refuse_mismatch(skeleton)  # nothing is missing
    shared = {*skeleton.shared, *skeleton.shared.values()}
    assert bool(shared) == (model_type == "zamba2")
    assert shared.isdisjoint(skeleton.sources)


def test_experts_are_written_one_by_one(tmp_path: Path):
    """Names of fused experts are those that vLLM reads; experts that have names keep them."""
    names: dict[str, set[str]] = {}
    for number, kind in enumerate(KINDS):
        skeleton = build_skeleton(read_checkpoint(write(kind, tmp_path / str(number))))
        names[kind] = {source.name for source in skeleton.sources.values()}

    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names["experts stored one by one"]
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in names["a dense block before"]
    assert "model.layers.0.mlp.experts.3.gate_proj.weight" in names["interleaved with biases"]
    assert "model.layers.0.mlp.experts.3.gate_proj.bias" in names["interleaved with biases"]
    assert "model.layers.1.feed_forward.experts.3.down_proj.weight" in names["transposed"]
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names["other names"]
    assert "transformer.h.0.attn.c_attn.weight" in names["Conv1D"]


@pytest.mark.parametrize("kind", ["Conv1D", "a shared expert", "interleaved with biases", "transposed", "other names"])
def test_the_forecast_from_headers_agrees_with_the_plan(kind: str, tmp_path: Path):
    """Fused experts are counted one by one, with the inputs and outputs they really have."""
    checkpoint = read_checkpoint(write(kind, tmp_path))
    config = RunConfig(model=str(tmp_path), output=str(tmp_path / "out"), group_size=32)
    found, plan = estimate(checkpoint, config), make_plan(config, build_skeleton(checkpoint))

    assert found.n_linears == len(plan.linears)
    assert found.bytes_after == plan.event.bytes_after
    assert found.bits_per_weight == plan.event.bits_per_weight
