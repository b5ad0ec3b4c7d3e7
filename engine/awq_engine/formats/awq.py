"""The AutoAWQ GEMM tensors of one linear, written and read.

For a linear with `in` inputs and `out` outputs a checkpoint holds three tensors, all transposed against our own
[out_features, ...] convention, eight 4-bit values to an int32 along the outputs:

    qweight  int32    [in, out // 8]
    qzeros   int32    [in // group_size, out // 8]     the zero point as it is (GPTQ's first version stores it minus 1)
    scales   float16  [in // group_size, out]

Word `c` holds the outputs `8c .. 8c + 7`; its bits `4i .. 4i + 3` hold output `8c + NIBBLE_ORDER[i]`. The order comes
from AutoAWQ's CUDA kernel and is what vLLM, SGLang, TGI and transformers read under the name `awq`, version `gemm`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from awq_engine.errors import BadInputError
from awq_engine.formats.act_order import refuse_order
from awq_engine.formats.codec import Kept
from awq_engine.formats.parts import FLOATS, INT32, Parts, check_shape, inputs_per_group, stored_scale, take
from awq_engine.formats.patterns import outside_blocks
from awq_engine.formats.words import pack_words, unpack_words
from awq_engine.fused import EXPERTS, by_site, site
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

BITS = 4
WORD = 32 // BITS
"""Values in one int32."""
NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of the eight outputs of a word the nibbles hold, from the lowest bits up."""
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The nibble that each of the eight outputs is in: the inverse of `NIBBLE_ORDER`."""
PARTS = ("qweight", "qzeros", "scales")


def pack(weight: IntWeight, spec: QuantSpec, name: str = "weight") -> dict[str, torch.Tensor]:
    """The three tensors of an AutoAWQ GEMM checkpoint; `unpack` gives back exactly the same integers and scales.

    Args:
        weight: 4 bits, out_features a multiple of 8, scales that float16 holds exactly.
        spec: not needed here; symmetric weights have their zero points too.
        name: what to call the linear in an error.
    Returns:
        qweight int32 [in, out // 8], qzeros int32 [n_groups, out // 8], scales float16 [n_groups, out], contiguous.
    Raises:
        BadInputError: the format cannot hold this weight; the message says why.
    """
    refuse_order(weight, name)
    if weight.bits != BITS:
        raise BadInputError(f"{name} has {weight.bits} bits, but the awq format holds only {BITS}; use another format.")
    if weight.out_features % WORD:
        raise BadInputError(
            f"{name} has {weight.out_features} outputs, but the awq format needs a multiple of {WORD}; "
            "leave this linear unquantized."
        )
    return {
        "qweight": pack_words(_reorder(weight.q.T, NIBBLE_ORDER), BITS),
        "qzeros": pack_words(_reorder(weight.zero_point.T, NIBBLE_ORDER), BITS),
        "scales": stored_scale(weight, (torch.float16,), name).T.contiguous(),
    }


def unpack(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read the tensors `qweight`, `qzeros` and `scales` of one linear (others are ignored).

    Args:
        parts: qweight int32 [in, out // 8], qzeros int32 [n_groups, out // 8], scales float [n_groups, out].
        spec: group_size counts; -1 for one group over all inputs.
        name: what to call the linear in an error.
    Raises:
        BadInputError: a tensor is missing, or has a wrong dtype or shape; names the tensor and both shapes.
    """
    qweight, qzeros = take(parts, "qweight", name, INT32), take(parts, "qzeros", name, INT32)
    scales = take(parts, "scales", name, FLOATS)
    in_features, out_features = qweight.shape[0], qweight.shape[1] * WORD
    group_size = inputs_per_group(in_features, spec.group_size, f"{name}.qweight")
    n_groups = in_features // group_size
    check_shape(qzeros, (n_groups, out_features // WORD), f"{name}.qzeros", group_size)
    check_shape(scales, (n_groups, out_features), f"{name}.scales", group_size)
    q, zero_point = (_reorder(unpack_words(words, BITS, out_features), PLACES) for words in (qweight, qzeros))
    return IntWeight(q.T.contiguous(), scales.T.contiguous(), zero_point.T.contiguous(), group_size)


def _reorder(values: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """[rows, columns] with the columns of every eight taken in `order`."""
    eights = values.unflatten(1, (-1, WORD))
    return torch.stack([eights[:, :, place] for place in order], dim=2).flatten(1)


def settings(specs: Mapping[str, QuantSpec], kept: Kept) -> dict[str, Any]:
    """As AutoAWQ writes it; it knows one spec for all linears.

    `zero_point` is true for symmetric weights too: readers then take their fast kernels, and find every zero at 8.
    """
    spec = next(iter(specs.values()))
    head = {"lm_head": True} if outside_blocks(specs) else {}  # vLLM looks for it before it reads the names
    return {
        "quant_method": "awq", "bits": spec.bits, "group_size": spec.group_size, "zero_point": True,
        "version": "gemm", "modules_to_not_convert": _kept_names(specs, kept) or None, **head,
    }  # fmt: skip


def _kept_names(quantized: Collection[str], kept: Kept) -> list[str]:
    """What to leave in floats, for readers that compare each in its own way.

    transformers takes a module whose name starts or ends so, vLLM one that has it anywhere. A part is listed under its
    path (for transformers) and its last word (for vLLM, which keeps towers elsewhere), a block's experts under the one
    module that holds them, since that is what vLLM asks for.
    """
    names: list[str] = []
    for part in kept.parts:
        last = part.rpartition(".")[2]
        names += [part] if any(last in name for name in quantized) else [part, last]
    for keys in by_site([*kept.linears, *quantized]).values():
        left = [key for key in keys if key not in quantized]
        names += [site(left[0])] if EXPERTS in keys[0] and left == keys else left
    return list(dict.fromkeys(names))
