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


def test_experts_are_left_to_their_own_kernels() -> None:
    assert marlin_refusals(Format.AWQ, {"m.experts.0.w1": Shape(8, 8, QuantSpec(4, 8, symmetric=False))}) == {}


def test_sentences_name_sizes_once() -> None:
    found = describe_refusals(Format.AWQ, {"a": (2, 4), "b": (2, 4), "c": ALWAYS})
    assert found == [
        "vLLM's Marlin kernel does not take c in the format awq; slower kernels may.",
        "vLLM's Marlin kernel does not take a (and 1 more) in the format awq at tensor parallel size 2, 4; slower "
        "kernels may.",
    ]
