"""The compressed-tensors tensors of one linear, as llm-compressor writes and vLLM and transformers read them.

`pack-quantized`, which we write, keeps our own [out_features, ...] convention and packs along the inputs:

    weight_packed      int32    [out, ceil(in * bits / 32)]
    weight_scale       float    [out, in // group_size]                      in the dtype of the model
    weight_zero_point  int32    [ceil(out * bits / 32), in // group_size]    along the outputs; none when symmetric
    weight_shape       int64    [2]                                          out, in
    weight_g_idx       int32    [in]                                         only with act-order

The format's integers are signed, and it adds 2**(bits - 1) to pack them: what is stored is our unsigned integer.
`naive-quantized` and `int-quantized` (read only) have `weight` int8 [out, in] and `weight_zero_point` int8 as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
NAIVE_PARTS = ("weight_scale", "weight", "weight_zero_point", "weight_g_idx")


def pack(weight: IntWeight, spec: QuantSpec, name: str = "weight") -> dict[str, torch.Tensor]:
    """The tensors of a `pack-quantized` checkpoint; with a symmetric `spec` there are no zero points."""
    refuse_order(weight, name)
    packed = {
        "weight_packed": pack_words(weight.q, weight.bits),
        "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor([weight.out_features, weight.in_features]),
    }
    if not spec.symmetric:
        packed["weight_zero_point"] = pack_words(weight.zero_point.T, weight.bits).T.contiguous()
    return packed


def unpack(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read a `pack-quantized` linear; `BadInputError` names the tensor that is missing or does not fit the others."""
    packed, shape = take(parts, "weight_packed", name, INT32), take(parts, "weight_shape", name, (torch.int64,), ndim=1)
    out_features, in_features = shape.tolist() if shape.numel() == 2 else (0, 0)
    if packed.shape[0] != out_features or packed.shape[1] not in _widths(in_features, spec.bits):
        raise BadInputError(
            f"{name}.weight_packed has shape {list(packed.shape)}, which does not hold the {shape.tolist()} integers "
            f"of {spec.bits} bits that weight_shape and config.json describe."
        )
    dense = packed.shape[1] == n_words(in_features, spec.bits)
    q = unpack_words(packed, spec.bits, in_features) if dense else _unpack_padded(packed, spec.bits, in_features)
    return _int_weight(parts, spec, q, name)


def unpack_naive(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read a linear whose `weight` holds one signed integer a byte; raises as `unpack`."""
    q = take(parts, "weight", name, (torch.int8,))
    return _int_weight(parts, spec, _unsigned(q, spec.bits), name)


def _int_weight(parts: Parts, spec: QuantSpec, q: torch.Tensor, name: str) -> IntWeight:
    """With the steps and zero points of `parts`; `q` is uint8 [out, in] in the order of the file."""
    out_features, in_features = q.shape
    group_size = inputs_per_group(in_features, spec.group_size, name)
    shape = (out_features, in_features // group_size)
    scale = parts.get("weight_scale")
    if scale is not None and scale.numel() == 1:  # one step for the whole tensor
        scale = scale.reshape(1, 1).expand(shape)
    scale = take({"weight_scale": scale} if scale is not None else {}, "weight_scale", name, FLOATS)
    check_shape(scale, shape, f"{name}.weight_scale", group_size)
    order = input_order(parts, "weight_g_idx", in_features, group_size, name)
    q = q if order is None else q[:, order].contiguous()
    return IntWeight(q, scale.contiguous(), _zero_points(parts, spec, shape, name), group_size, spec.bits, order)


def _zero_points(parts: Parts, spec: QuantSpec, shape: tuple[int, int], name: str) -> torch.Tensor:
    """uint8 [out, n_groups]; in the middle of the range where none are stored."""
    middle = torch.full(shape, 1 << (spec.bits - 1), dtype=torch.uint8)
    if not spec.symmetric:
        return _stored_zero_points(parts, spec, shape, name)
    if "weight_zero_point" in parts and not torch.equal(_stored_zero_points(parts, spec, shape, name), middle):
        raise BadInputError(
            f"{name}.weight_zero_point holds other values than the middle of the range, but config.json says that the "
            "weights are symmetric; correct one of them."
        )
    return middle


def _stored_zero_points(parts: Parts, spec: QuantSpec, shape: tuple[int, int], name: str) -> torch.Tensor:
    zeros = take(parts, "weight_zero_point", name, (torch.int32, torch.int8))
    if zeros.dtype == torch.int8:
        check_shape(zeros, shape, f"{name}.weight_zero_point", spec.group_size)
        return _unsigned(zeros, spec.bits)
    check_shape(zeros, (n_words(shape[0], spec.bits), shape[1]), f"{name}.weight_zero_point", spec.group_size)
    return unpack_words(zeros.T, spec.bits, shape[0]).T.contiguous()


def _unsigned(values: torch.Tensor, bits: int) -> torch.Tensor:
    return (values.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


def _widths(in_features: int, bits: int) -> tuple[int, int]:
    """Words of a row as it is packed now, and as releases before 2026 did: whole elements, padding in every word."""
    return n_words(in_features, bits), -(-in_features // (WORD_BITS // bits))


def _unpack_padded(packed: torch.Tensor, bits: int, in_features: int) -> torch.Tensor:
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32) * bits
    values = (packed[:, :, None] >> shifts) & (2**bits - 1)  # [out, words, elements]
    return values.flatten(1)[:, :in_features].to(torch.uint8).contiguous()


def settings(specs: Mapping[str, QuantSpec], kept: Kept) -> dict[str, Any]:
    """One config group per spec: the commonest takes all linears that are not ignored, the others name theirs.

    vLLM asks for the name of a joined linear first, then for its class, and for the names of its parts last: so the
    names of the others' joined linears have to be there, or the class would put them into the first group. Its head is
    of another class, so that an expression has to name it in the first group too.
    """
    by_spec: dict[QuantSpec, list[str]] = {}
    for name, spec in specs.items():
        by_spec.setdefault(spec, []).append(name)
    groups = sorted(by_spec.items(), key=lambda item: -len(item[1]))
    linears = [*specs, *kept.linears]
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "global_compression_ratio": None, "kv_cache_scheme": None,
        "config_groups": {
            f"group_{number}": _scheme(spec, _targets(names, linears, common=number == 0))
            for number, (spec, names) in enumerate(groups)
        },
        "ignore": [*(f"re:{part_pattern(part)}" for part in kept.parts), *_ignored(kept.linears, linears)],
    }  # fmt: skip


def _targets(names: Collection[str], linears: Collection[str], *, common: bool) -> list[str]:
    """The linears of a group by expressions; of the `common` one by their class, and the head by its name."""
    if common:
        return ["Linear", *(f"re:{pattern}" for pattern in name_patterns(outside_blocks(names), linears))]
    return [f"re:{pattern}" for pattern in name_patterns(names, linears)]


def _ignored(names: Collection[str], linears: Collection[str]) -> list[str]:
    """Linears by name: those that stand alone in full, those of blocks by expressions."""
    alone = [name for name in names if "." not in name]
    return [*(f"re:{pattern}" for pattern in name_patterns({*names} - {*alone}, linears)), *alone]


def _scheme(spec: QuantSpec, targets: list[str]) -> dict[str, Any]:
    per_row = spec.group_size == -1
    weights = {
        "num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric,
        "strategy": "channel" if per_row else "group", "group_size": None if per_row else spec.group_size,
        "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    return {
        "targets": targets, "format": "pack-quantized", "weights": weights,
        "input_activations": None, "output_activations": None,
    }  # fmt: skip
