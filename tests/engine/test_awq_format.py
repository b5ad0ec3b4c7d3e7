"""The AutoAWQ GEMM codec against fixed vectors and round trips."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine.errors import BadInputError
from awq_engine.formats.awq import pack, unpack
from awq_engine.formats.parts import Parts
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize


def pack_awq(weight: IntWeight, name: str = "weight") -> dict[str, torch.Tensor]:
    return pack(weight, QuantSpec(4, weight.group_size, symmetric=False), name)


def unpack_awq(parts: Parts, group_size: int, name: str = "weight") -> IntWeight:
    return unpack(parts, QuantSpec(4, group_size, symmetric=False), name)


def as_hex(words: torch.Tensor) -> list[str]:
    return [f"0x{int(word) & 0xFFFFFFFF:08x}" for word in words.flatten()]


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()[:16]


def vector_b() -> IntWeight:
    """32 outputs, 64 inputs, groups of 32: q = (7o + 3i) % 16, z = (5o + 11k) % 16, scale = (1 + o + 2k) / 1024."""
    o, i, k = torch.arange(32)[:, None], torch.arange(64)[None], torch.arange(2)[None]
    return IntWeight(
        q=((7 * o + 3 * i) % 16).to(torch.uint8),
        scale=((1 + o + 2 * k) / 1024).to(torch.float16),
        zero_point=((5 * o + 11 * k) % 16).to(torch.uint8),
        group_size=32,
    )


def one_group(q: list[int], scale: float, zero_point: int) -> IntWeight:
    """One output row with one group."""
    return IntWeight(
        torch.tensor([q], dtype=torch.uint8),
        torch.tensor([[scale]]),
        torch.tensor([[zero_point]], dtype=torch.uint8),
        len(q),
    )


def random_weight(out_features: int, n_groups: int, group_size: int, seed: int) -> IntWeight:
    generator = torch.Generator().manual_seed(seed)
    return IntWeight(
        torch.randint(0, 16, (out_features, n_groups * group_size), generator=generator, dtype=torch.uint8),
        torch.rand(out_features, n_groups, generator=generator).to(torch.float16),
        torch.randint(0, 16, (out_features, n_groups), generator=generator, dtype=torch.uint8),
        group_size,
    )


def test_vector_a_the_word_of_0_to_7() -> None:
    """Eight outputs 0..7 of one input become the word that AutoAWQ writes."""
    weight = IntWeight(
        torch.arange(8, dtype=torch.uint8)[:, None], torch.ones(8, 1), torch.zeros(8, 1, dtype=torch.uint8), 1
    )
    assert as_hex(pack_awq(weight)["qweight"]) == ["0x75316420"]


def test_vector_b_tensors() -> None:
    """A whole linear, asymmetric and with two groups, is packed to the published bytes."""
    packed = pack_awq(vector_b())
    assert packed["qweight"].shape == (64, 4)
    assert as_hex(packed["qweight"][0]) == ["0x1357ace0", "0x9bdf2468", "0x1357ace0", "0x9bdf2468"]
    assert digest(packed["qweight"]) == "b718bfc16b1470fb"
    assert as_hex(packed["qzeros"][0]) == ["0x39f5e4a0", "0xb17d6c28", "0x39f5e4a0", "0xb17d6c28"]
    assert as_hex(packed["qzeros"][1]) == ["0xe4a09f5b", "0x6c2817d3", "0xe4a09f5b", "0x6c2817d3"]
    assert digest(packed["qzeros"]) == "9bf79a06f99e9575"
    assert packed["scales"].shape == (2, 32)
    assert digest(packed["scales"]) == "08976eefa6218b3a"


def test_vector_b_dequantizes_to_the_published_weights() -> None:
    weights = dequantize(unpack_awq(pack_awq(vector_b()), 32))
    assert weights[0, :4].tolist() == [0.0, 0.0029296875, 0.005859375, 0.0087890625]
    assert weights.sum().item() == pytest.approx(1.0)
    assert digest(weights) == "e2cd65f6dac9ac74"


def test_vector_d_asymmetric_group() -> None:
    """The integers of a group that straddles zero give back its weights to within half a step."""
    original = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0]])
    weights = dequantize(one_group([0, 3, 5, 6, 7, 10, 13, 15], 0.2, 5))
    assert weights.flatten().tolist() == pytest.approx([-1.0, -0.4, 0.0, 0.2, 0.4, 1.0, 1.6, 2.0])
    assert float((weights - original).abs().max()) <= 0.1 + 1e-6


def test_vector_e_one_sign_group() -> None:
    """AutoAWQ's integers for a group without zero lose it whole (0.3 everywhere); with zero in range they do not."""
    assert dequantize(one_group([15] * 4, 0.02, 0)).flatten().tolist() == pytest.approx([0.3] * 4)
    kept = dequantize(one_group([9, 11, 13, 15], 0.8 / 15, 0)).flatten()
    assert (kept - torch.tensor([0.5, 0.6, 0.7, 0.8])).abs().max() < 0.5 * 0.8 / 15


@settings(max_examples=40)
@given(
    words=st.integers(1, 6),
    n_groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 99),
)
def test_round_trip(words: int, n_groups: int, group_size: int, seed: int) -> None:
    """Packing and unpacking gives back exactly the integers, the zero points and the scales."""
    weight = random_weight(words * 8, n_groups, group_size, seed)
    back = unpack_awq(pack_awq(weight), group_size)
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.zero_point, weight.zero_point)
    assert torch.equal(back.scale, weight.scale)
    assert back.group_size == weight.group_size


def test_group_size_minus_one_is_one_group() -> None:
    weight = random_weight(16, 1, 64, seed=1)
    assert unpack_awq(pack_awq(weight), -1).group_size == 64


def test_float32_scales_that_float16_holds_are_packed() -> None:
    weight = vector_b()
    wide = IntWeight(weight.q, weight.scale.float(), weight.zero_point, 32)
    assert torch.equal(pack_awq(wide)["scales"], pack_awq(weight)["scales"])


@pytest.mark.parametrize("scale", [1 / 3, 1e6, 1e-9], ids=["rounded", "overflow", "underflow"])
def test_scales_that_float16_would_change_are_refused(scale: float) -> None:
    weight = IntWeight(
        torch.zeros(8, 4, dtype=torch.uint8), torch.full((8, 1), scale), torch.zeros(8, 1, dtype=torch.uint8), 4
    )
    with pytest.raises(BadInputError, match=r"model\.up_proj has 8 of 8 scales that float16 does not hold"):
        pack_awq(weight, name="model.up_proj")


def test_outputs_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"lm_head has 12 outputs.*multiple of 8"):
        pack_awq(random_weight(12, 1, 8, seed=0), name="lm_head")


def test_other_widths_are_refused() -> None:
    weight = random_weight(8, 1, 8, seed=0)
    with pytest.raises(BadInputError, match="3 bits"):
        pack_awq(IntWeight(weight.q % 8, weight.scale, weight.zero_point % 8, 8, bits=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": None}, "q_proj.scales is missing"),
        ({"qweight": torch.zeros(64, 4)}, r"q_proj.qweight is torch.float32 \[64, 4\]"),
        ({"qzeros": torch.zeros(4, 4, dtype=torch.int32)}, r"q_proj.qzeros has shape \[4, 4\], expected \[2, 4\]"),
        ({"scales": torch.zeros(2, 16, dtype=torch.float16)}, r"q_proj.scales has shape \[2, 16\], expected \[2, 32\]"),
        ({"qweight": torch.zeros(60, 4, dtype=torch.int32)}, "q_proj.qweight has 60 inputs, which groups of 32"),
    ],
)
def test_broken_tensors_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {key: value for key, value in (pack_awq(vector_b()) | change).items() if value is not None}
    with pytest.raises(BadInputError, match=message):
        unpack_awq(tensors, 32, name="q_proj")


def test_int_weight_refuses_shapes_that_do_not_belong_together() -> None:
    weight = vector_b()
    with pytest.raises(ValueError, match=r"scale has shape \[32, 1\], expected \[32, 2\]"):
        IntWeight(weight.q, weight.scale[:, :1], weight.zero_point, 32)
    with pytest.raises(ValueError, match="groups of 48"):
        IntWeight(weight.q, weight.scale, weight.zero_point, 48)
    with pytest.raises(ValueError, match="expected uint8"):
        IntWeight(weight.q.int(), weight.scale, weight.zero_point, 32)
