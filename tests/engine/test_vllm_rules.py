"""The table of what vLLM's Marlin kernels take, on shapes whose fate is known."""

from __future__ import annotations

import pytest

from awq_engine.formats.limits import Format
from awq_engine.spec import QuantSpec
from awq_engine.vllm_rules import Shape, describe_refusals, marlin_refusals

ALWAYS = (1, 2, 4, 8)
BLOCK = "model.layers.0"


def refused(layout: Format = Format.AWQ, spec: QuantSpec | None = None, **shapes: tuple[int, int]) -> dict:
    spec = spec or QuantSpec(4, 128, symmetric=False)
    linears = {f"{BLOCK}.{name}": Shape(*shape, spec) for name, shape in shapes.items()}
    return {name.removeprefix(f"{BLOCK}."): found for name, found in marlin_refusals(layout, linears).items()}


def test_a_7b_llama_is_taken_whole() -> None:
    shapes = {
        "q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
        "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336),
    }  # fmt: skip
    assert refused(**shapes) == {}


def test_inputs_that_devices_share_must_keep_whole_groups() -> None:
    """Qwen2-72B's 29568 inputs are 14784 on each of two devices, no multiple of 128 (sglang's issue 3571)."""
    assert refused(down_proj=(8192, 29568)) == {"down_proj": (2, 4, 8)}
    assert refused(spec=QuantSpec(4, -1, symmetric=False), down_proj=(8192, 29568)) == {"down_proj": (2, 4, 8)}
    assert refused(gate_proj=(29568, 8192)) == {"gate_proj": (4, 8)}


def test_a_head_is_padded_to_whole_tiles_before_it_is_shared() -> None:
    """Llama-2's 32000 outputs are 4000 on each of eight devices; one more makes 32064, which two cannot share."""
    spec = QuantSpec(4, 128, symmetric=False)
    assert marlin_refusals(Format.AWQ, {"lm_head": Shape(32000, 4096, spec)}) == {"lm_head": (8,)}
    assert marlin_refusals(Format.AWQ, {"lm_head": Shape(32008, 4096, spec)}) == {"lm_head": (2, 4, 8)}


def test_outputs_count_together_where_vllm_joins_them() -> None:
    """32 outputs alone fill no tile of 64; with q and v beside them they do."""
    assert refused(k_proj=(32, 256)) == {"k_proj": ALWAYS}
    assert refused(q_proj=(192, 256), k_proj=(32, 256), v_proj=(32, 256)) == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj"), (8,)
    )


@pytest.mark.parametrize(
    ("layout", "spec", "taken"),
    [
        (Format.AWQ, QuantSpec(4, 32, symmetric=True), True),
        (Format.AWQ, QuantSpec(4, 16, symmetric=True), False),
        (Format.GPTQ, QuantSpec(4, 128, symmetric=False), False),
        (Format.GPTQ, QuantSpec(8, 128, symmetric=True), True),
        (Format.GPTQ_V2, QuantSpec(3, 128, symmetric=True), False),
        (Format.COMPRESSED_TENSORS, QuantSpec(4, 128, symmetric=False), True),
        (Format.COMPRESSED_TENSORS, QuantSpec(8, -1, symmetric=True), True),
        (Format.COMPRESSED_TENSORS, QuantSpec(8, 128, symmetric=False), False),
    ],
    ids=str,
)
def test_bits_groups_and_symmetry(layout: Format, spec: QuantSpec, taken: bool) -> None:
    assert refused(layout, spec, gate_proj=(4096, 4096)) == ({} if taken else {"gate_proj": ALWAYS})


def experts(hidden: int, inner: int, spec: QuantSpec, layout: Format = Format.AWQ) -> set[tuple[int, ...]]:
    """What is refused of two experts of this shape."""
    linears = {}
    for number in range(2):
        for role in ("gate_proj", "up_proj"):
            linears[f"{BLOCK}.mlp.experts.{number}.{role}"] = Shape(inner, hidden, spec)
        linears[f"{BLOCK}.mlp.experts.{number}.down_proj"] = Shape(hidden, inner, spec)
    found = marlin_refusals(layout, linears)
    assert set(found) in (set(), set(linears)), "experts are one module"
    return set(found.values())


@pytest.mark.parametrize(
    ("hidden", "inner", "spec", "refused_at"),
    [
        (2048, 768, QuantSpec(4, 128, symmetric=False), {(4, 8)}),  # Qwen3-30B-A3B: 192 of 4 devices
        (2048, 768, QuantSpec(4, 64, symmetric=False), {(8,)}),
        (2048, 1408, QuantSpec(4, 128, symmetric=False), {(2, 4, 8)}),  # DeepSeek-V2-Lite: 704 of 2
        (4096, 14336, QuantSpec(4, 128, symmetric=False), set()),  # Mixtral-8x7B
        (2880, 2880, QuantSpec(4, 32, symmetric=False), {ALWAYS}),  # gpt-oss: 2880 is no multiple of 128
        (2048, 768, QuantSpec(4, 16, symmetric=False), {ALWAYS}),
        (2048, 768, QuantSpec(4, -1, symmetric=False), {(8,)}),
    ],
    ids=str,
)
def test_experts_have_rules_of_their_own(hidden: int, inner: int, spec: QuantSpec, refused_at: set) -> None:
    assert experts(hidden, inner, spec) == refused_at


def test_experts_of_asymmetric_gptq_are_refused() -> None:
    assert experts(2048, 768, QuantSpec(4, 32, symmetric=False), Format.GPTQ) == {ALWAYS}
    assert experts(2048, 1024, QuantSpec(8, 32, symmetric=True), Format.GPTQ) == set()


def test_each_device_gets_a_whole_head_of_keys_and_values() -> None:
    """Qwen2.5-7B: 4 heads of keys on 8 devices are one on each, not half a head."""
    spec = QuantSpec(4, 128, symmetric=False)
    shapes = {"q_proj": (3584, 3584), "k_proj": (512, 3584), "v_proj": (512, 3584)}
    linears = {f"{BLOCK}.{name}": Shape(*shape, spec) for name, shape in shapes.items()}

    assert marlin_refusals(Format.AWQ, linears, head_dim=128) == {}
    linears = {name: Shape(shape.out_features // 2, shape.in_features, spec) for name, shape in linears.items()}
    assert set(marlin_refusals(Format.AWQ, linears, head_dim=64).values()) == {(8,)}


def test_sentences_name_sizes_once() -> None:
    found = describe_refusals(Format.AWQ, {"a": (2, 4), "b": (2, 4), "c": ALWAYS})
    assert found == [
        "vLLM's Marlin kernel does not take c in the format awq; slower kernels may.",
        "vLLM's Marlin kernel does not take a (and 1 more) in the format awq at tensor parallel size 2, 4; slower "
        "kernels may.",
    ]
