"""The GPTQ tensors of one linear, in both versions of the format.

All transposed against our own [out_features, ...] convention; integers fill words along the inputs, zero points along
the outputs, from the lowest bits up:

    qweight  int32  [in * bits // 32, out]
    qzeros   int32  [in // group_size, out * bits // 32]
    scales   float  [in // group_size, out]
    g_idx    int32  [in]                        the group of each input

Version 1 stores zero points minus 1, and its readers differ where that wraps: GPTQModel subtracts and adds ones to
whole words, which borrows from the neighbours; CUDA kernels add 1 after unpacking and read a zero point of 0 back as
2**bits. So it holds zero points from 1 up, on which all agree; version 2 (`gptq_v2`) stores them as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from awq_engine.errors import BadInputError
from awq_engine.formats.act_order import input_order, refuse_order
from awq_engine.formats.codec import Kept
from awq_engine.formats.parts import FLOATS, INT32, Parts, check_shape, inputs_per_group, take
from awq_engine.formats.patterns import name_patterns, outside_blocks, part_pattern
from awq_engine.formats.words import WORD_BITS, n_words, pack_words, unpack_words
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def pack(weight: IntWeight, spec: QuantSpec, name: str = "weight", *, version: int = 1) -> dict[str, torch.Tensor]:
    """The four tensors of a GPTQ checkpoint; `BadInputError` when it cannot hold the weight exactly.

    With a symmetric `spec` readers take all zero points to be in the middle.
    """
    refuse_order(weight, name)
    for count, what in ((weight.out_features, "outputs"), (weight.in_features, "inputs")):
        if count * weight.bits % WORD_BITS:
            raise BadInputError(
                f"{name} has {count} {what}, which at {weight.bits} bits do not fill whole 32-bit words, as the gptq "
                "format needs; leave this linear unquantized or use --format compressed-tensors."
            )
    if version == 1 and not weight.zero_point.all():
        zeros = int((weight.zero_point == 0).sum())
        raise BadInputError(
            f"{name} has {zeros} of {weight.zero_point.numel()} zero points at 0, which the gptq format stores as -1 "
            "and its readers disagree on; use --format gptq_v2 or compressed-tensors."
        )
    offset = 1 if version == 1 else 0
    return {
        "qweight": pack_words(weight.q, weight.bits).T.contiguous(),
        "qzeros": pack_words((weight.zero_point - offset).T, weight.bits),
        "scales": weight.scale.T.contiguous(),
        "g_idx": (torch.arange(weight.in_features) // weight.group_size).to(torch.int32),
    }


def pack_v2(weight: IntWeight, spec: QuantSpec, name: str = "weight") -> dict[str, torch.Tensor]:
    """As `pack`, with zero points as they are."""
    return pack(weight, spec, name, version=2)


def unpack(parts: Parts, spec: QuantSpec, name: str = "weight", *, version: int = 1) -> IntWeight:
    """Read the tensors above, act-order and all; `BadInputError` names the one that does not fit."""
    qweight, qzeros = take(parts, "qweight", name, INT32), take(parts, "qzeros", name, INT32)
    scales = take(parts, "scales", name, FLOATS)
    in_features, out_features = qweight.shape[0] * WORD_BITS // spec.bits, qweight.shape[1]
    group_size = inputs_per_group(in_features, spec.group_size, f"{name}.qweight")
    n_groups = in_features // group_size
    check_shape(qzeros, (n_groups, n_words(out_features, spec.bits)), f"{name}.qzeros", group_size)
    check_shape(scales, (n_groups, out_features), f"{name}.scales", group_size)
    q = unpack_words(qweight.T, spec.bits, in_features)
    order = input_order(parts, "g_idx", in_features, group_size, name)
    return IntWeight(
        q=q if order is None else q[:, order].contiguous(),
        scale=scales.T.contiguous(),
        zero_point=_zero_points(qzeros, spec, out_features, version),
        group_size=group_size,
        bits=spec.bits,
        order=order,
    )


def unpack_v2(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """As `unpack`, with zero points as they are."""
    return unpack(parts, spec, name, version=2)


def _zero_points(qzeros: torch.Tensor, spec: QuantSpec, out_features: int, version: int) -> torch.Tensor:
    """uint8 [out, n_groups].

    Symmetric weights have them in the middle by definition, whatever is stored: some tools store version 2 under the
    name of version 1. Else version 1 has ones added to whole words, as GPTQModel took them off; not with 3 bits, where
    a zero point may lie in two words.
    """
    if spec.symmetric:
        return torch.full((out_features, qzeros.shape[0]), 1 << (spec.bits - 1), dtype=torch.uint8)
    if version == 1 and WORD_BITS % spec.bits == 0:
        ones = pack_words(torch.ones(1, out_features, dtype=torch.uint8), spec.bits)
        qzeros = (qzeros.long() + ones.long()).to(torch.int32)  # modulo 2**32
    zeros = unpack_words(qzeros, spec.bits, out_features).T.contiguous()
    return (zeros + 1) % 2**spec.bits if version == 1 and WORD_BITS % spec.bits else zeros


def settings(specs: Mapping[str, QuantSpec], kept: Kept, *, version: int = 1) -> dict[str, Any]:
    """As GPTQModel writes it: the commonest spec for all, `dynamic` rules for linears that differ or stay as they are.

    A rule is a regular expression on the linear's name, and the first that fits decides: `+:` changes settings, `-:`
    leaves it unquantized.
    """
    common = Counter(specs.values()).most_common(1)[0][0]
    linears = [*specs, *kept.linears]
    unquantized = [*map(part_pattern, kept.parts), *name_patterns({*kept.linears}, linears, containers=True)]
    dynamic: dict[str, dict[str, Any]] = {f"-:{pattern}": {} for pattern in unquantized}
    for spec in dict.fromkeys(specs.values()):
        if spec != common:
            names = {name for name, other in specs.items() if other == spec}
            rule = {"bits": spec.bits, "group_size": spec.group_size, "sym": spec.symmetric}
            dynamic |= {f"+:{pattern}": rule for pattern in name_patterns(names, linears, containers=True)}
    return {
        "quant_method": "gptq", "bits": common.bits, "group_size": common.group_size, "desc_act": False,
        "sym": common.symmetric, "lm_head": bool(outside_blocks(specs)), "true_sequential": True,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2", "dynamic": dynamic or None,
        "meta": {"quantizer": ["awq-tui"]},
    }  # fmt: skip


def settings_v2(specs: Mapping[str, QuantSpec], kept: Kept) -> dict[str, Any]:
    """As `settings`, for zero points as they are."""
    return settings(specs, kept, version=2)
