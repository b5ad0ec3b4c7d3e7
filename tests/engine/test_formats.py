"""What holds for every format on disk: nothing is lost there and back, and what cannot be held is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine.errors import BadInputError
from awq_engine.formats.limits import LIMITS, Format, bits_problem, misfit, packed_bytes, step_dtype
from awq_engine.formats.registry import CODECS
from awq_engine.formats.words import n_words, pack_words, unpack_words
from awq_engine.quantize import DTYPES
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize

ASYMMETRIC = QuantSpec(4, 32, symmetric=False)


@st.composite
def weights(draw: st.DrawFn, layout: Format) -> tuple[IntWeight, QuantSpec]:
    """A random weight that `layout` can hold, and its spec."""
    limits = LIMITS[layout]
    bits = draw(st.sampled_from(limits.bits))
    n_groups, group_size = draw(st.integers(1, 4)), draw(st.sampled_from([8, 32, 40, 96]))
    in_features, out_features = n_groups * group_size, draw(st.integers(1, 5)) * draw(st.sampled_from([1, 8, 32]))
    if misfit(layout, bits, out_features, in_features):
        in_features, out_features = n_groups * 32, -(-out_features // 32) * 32
        group_size = 32
    symmetric = draw(st.booleans())
    dtype = draw(st.sampled_from(["float16", "bfloat16"] if limits.bfloat16 else ["float16"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    low = 2 ** (bits - 1) if symmetric else limits.lowest_zero
    high = low + 1 if symmetric else 2**bits
    weight = IntWeight(
        q=torch.randint(0, 2**bits, (out_features, in_features), generator=generator, dtype=torch.uint8),
        scale=torch.rand(out_features, n_groups, generator=generator).to(DTYPES[dtype]),
        zero_point=torch.randint(low, high, (out_features, n_groups), generator=generator).to(torch.uint8),
        group_size=group_size,
        bits=bits,
    )
    whole_row = n_groups == 1 and draw(st.booleans())
    return weight, QuantSpec(bits, -1 if whole_row else group_size, weight.symmetric, dtype)


@pytest.mark.parametrize("layout", Format)
@settings(max_examples=40)
@given(data=st.data())
def test_packing_loses_nothing(layout: Format, data: st.DataObject) -> None:
    """Integers, zero points and steps come back bit for bit, and the forecast of the size is exact."""
    weight, spec = data.draw(weights(layout))
    parts = CODECS[layout].pack(weight, spec, "linear")
    back = CODECS[layout].unpack(parts, spec, "linear")

    assert set(parts) <= set(CODECS[layout].parts)
    assert all(tensor.is_contiguous() for tensor in parts.values())
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.zero_point, weight.zero_point)
    assert torch.equal(back.scale, weight.scale)
    assert back.scale.dtype == weight.scale.dtype
    assert (back.group_size, back.bits, back.order) == (weight.group_size, weight.bits, None)
    stored = sum(tensor.nbytes for tensor in parts.values())
    assert stored == packed_bytes(layout, spec, weight.out_features, weight.in_features)


@settings(max_examples=60)
@given(bits=st.integers(1, 8), rows=st.integers(1, 3), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_words_hold_a_plain_stream_of_bits(bits: int, rows: int, columns: int, seed: int) -> None:
    """Each row is one long little-endian number with element i at bit i * bits."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack_words(values, bits)
    assert packed.shape == (rows, n_words(columns, bits))
    for row, words in zip(values.tolist(), packed.tolist(), strict=True):
        stream = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
        assert stream == sum(value << (bits * i) for i, value in enumerate(row))
    assert torch.equal(unpack_words(packed, bits, columns), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_stay_on_the_device_they_come_from(bits: int) -> None:
    """On the one that has no numbers a tensor of any other cannot be mixed in."""
    packed = pack_words(torch.empty(2, 70, dtype=torch.uint8, device="meta"), bits)
    back = unpack_words(packed, bits, 70)
    assert (packed.device.type, packed.shape) == ("meta", (2, n_words(70, bits)))
    assert (back.device.type, back.shape) == ("meta", (2, 70))


@pytest.mark.parametrize("layout", Format)
def test_an_order_of_its_own_is_refused(layout: Format) -> None:
    weight = dataclasses.replace(some_weight(4), order=torch.arange(64).flip(0))
    with pytest.raises(BadInputError, match=r"q_proj groups its inputs in an order of its own"):
        CODECS[layout].pack(weight, ASYMMETRIC, "q_proj")


def some_weight(bits: int, out_features: int = 32, zero: int = 1) -> IntWeight:
    q = (torch.arange(out_features * 64) % 2**bits).to(torch.uint8).view(out_features, 64)
    scale = torch.full((out_features, 2), 0.5, dtype=torch.float16)
    return IntWeight(q, scale, torch.full((out_features, 2), zero, dtype=torch.uint8), 32, bits)


def test_columns_in_an_order_of_their_own_are_dequantized_in_the_order_of_the_inputs() -> None:
    weight = some_weight(4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(dequantize(dataclasses.replace(weight, order=order))[:, order], dequantize(weight))


def test_zero_points_at_0_do_not_fit_the_first_version_of_gptq() -> None:
    weight = some_weight(4, zero=0)
    with pytest.raises(BadInputError, match=r"q_proj has 64 of 64 zero points at 0.*--format gptq_v2"):
        CODECS[Format.GPTQ].pack(weight, ASYMMETRIC, "q_proj")
    assert not CODECS[Format.GPTQ_V2].pack(weight, ASYMMETRIC, "q_proj")["qzeros"].any()


def test_the_first_version_of_gptq_stores_zero_points_minus_1() -> None:
    qzeros = [
        CODECS[layout].pack(some_weight(4, zero=9), ASYMMETRIC, "")["qzeros"]
        for layout in (Format.GPTQ, Format.GPTQ_V2)
    ]
    assert qzeros[0].tolist() == [[-0x77777778] * 4] * 2  # 0x88888888
    assert qzeros[1].tolist() == [[-0x66666667] * 4] * 2  # 0x99999999


def test_zero_points_that_gptqmodel_wrapped_are_read_back() -> None:
    """It subtracts 0x11111111 from whole words, so a zero point of 0 borrows from its neighbour."""
    zeros = torch.tensor([[0, 5, 0, 0, 15, 1, 2, 0]], dtype=torch.uint8)
    parts = CODECS[Format.GPTQ_V2].pack(some_weight(4, out_features=8), ASYMMETRIC, "")
    parts["qzeros"] = (pack_words(zeros, 4).long() - 0x11111111).to(torch.int32).expand(2, 1).contiguous()
    back = CODECS[Format.GPTQ].unpack(parts, ASYMMETRIC, "q_proj")
    assert back.zero_point.T.tolist() == zeros.tolist() * 2


def test_symmetric_gptq_weights_are_centred_whatever_is_stored() -> None:
    """Some tools write version 2's zero points (8) under the name of version 1 (7)."""
    parts = CODECS[Format.GPTQ_V2].pack(some_weight(4, zero=8), ASYMMETRIC, "")
    assert CODECS[Format.GPTQ].unpack(parts, QuantSpec(4, 32, symmetric=True), "q_proj").symmetric


@pytest.mark.parametrize(("bits", "shape"), [(4, (12, 64)), (3, (16, 64)), (8, (32, 66)), (2, (8, 64))])
def test_shapes_that_do_not_fill_words_do_not_fit_gptq(bits: int, shape: tuple[int, int]) -> None:
    reason = misfit(Format.GPTQ, bits, *shape)
    assert reason is not None
    assert "do not fill whole 32-bit words, as the format gptq needs" in reason
    weight = IntWeight(
        torch.zeros(shape, dtype=torch.uint8), torch.ones(shape[0], 1), torch.ones(shape[0], 1, dtype=torch.uint8),
        shape[1], bits,
    )  # fmt: skip
    with pytest.raises(BadInputError, match="do not fill whole 32-bit words"):
        CODECS[Format.GPTQ].pack(weight, ASYMMETRIC, "q_proj")
    assert misfit(Format.COMPRESSED_TENSORS, bits, *shape) is None


def test_a_bit_width_that_a_format_cannot_hold_names_what_works() -> None:
    assert bits_problem(Format.AWQ, 4) is None
    assert bits_problem(Format.AWQ, 3) == (
        "The format awq holds only a bit width of 4, not 3; use --bits 4, or --format compressed-tensors, gptq or "
        "gptq_v2."
    )


def test_steps_stay_bfloat16_only_where_the_format_and_the_model_are() -> None:
    assert [step_dtype(layout, "BF16") for layout in Format] == ["float16", "bfloat16", "bfloat16", "bfloat16"]
    assert {step_dtype(layout, stored) for layout in Format for stored in ("F16", "F32")} == {"float16"}


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (Format.GPTQ, {"g_idx": torch.zeros(64, dtype=torch.int32)}, "q_proj.g_idx does not put 32 inputs into each"),
        (Format.GPTQ, {"g_idx": torch.zeros(60, dtype=torch.int32)}, r"q_proj.g_idx has shape \[60\], expected \[64\]"),
        (Format.GPTQ, {"qzeros": torch.zeros(2, 2, dtype=torch.int32)}, r"q_proj.qzeros has shape \[2, 2\]"),
        (Format.GPTQ, {"scales": None}, "q_proj.scales is missing"),
        (Format.COMPRESSED_TENSORS, {"weight_shape": torch.tensor([32, 128])}, r"weight_packed has shape \[32, 8\]"),
        (Format.COMPRESSED_TENSORS, {"weight_shape": torch.tensor([32])}, r"weight_packed has shape \[32, 8\]"),
        (Format.COMPRESSED_TENSORS, {"weight_scale": torch.ones(2, 32)}, r"weight_scale has shape \[2, 32\]"),
        (Format.COMPRESSED_TENSORS, {"weight_zero_point": None}, "weight_zero_point is missing"),
        (Format.COMPRESSED_TENSORS, {"weight_packed": torch.ones(32, 8)}, "weight_packed is torch.float32"),
    ],
)
def test_broken_tensors_are_named(layout: Format, change: dict[str, torch.Tensor | None], message: str) -> None:
    parts = CODECS[layout].pack(some_weight(4), ASYMMETRIC, "q_proj") | change
    present = {part: tensor for part, tensor in parts.items() if tensor is not None}
    with pytest.raises(BadInputError, match=message):
        CODECS[layout].unpack(present, ASYMMETRIC, "q_proj")
