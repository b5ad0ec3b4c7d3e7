"""The AutoAWQ GEMM tensors of one linear, written and read: the only place that knows nibble order.

For a linear with `in` inputs and `out` outputs a checkpoint holds three tensors, all transposed against our own
[out_features, ...] convention, eight 4-bit values to an int32 along the outputs:

    qweight  int32    [in, out // 8]
    qzeros   int32    [in // group_size, out // 8]     the zero point as it is (GPTQ's first version stores it minus 1)
    scales   float16  [in // group_size, out]

Word `c` holds the outputs `8c .. 8c + 7`; its bits `4i .. 4i + 3` hold output `8c + NIBBLE_ORDER[i]`. The order comes
from AutoAWQ's CUDA kernel and is what vLLM, SGLang, TGI and transformers read under the name `awq`, version `gemm`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_engine.errors import BadInputError
from awq_kernels.int_weight import SCALE_DTYPES, IntWeight

BITS = 4
WORD = 32 // BITS
"""Values in one int32."""
NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of the eight outputs of a word the nibbles hold, from the lowest bits up."""
TENSORS = ("qweight", "qzeros", "scales")


def pack_awq(weight: IntWeight, name: str = "weight") -> dict[str, torch.Tensor]:
    """The three tensors of an AutoAWQ GEMM checkpoint; `unpack_awq` gives back exactly the same integers and scales.

    Args:
        weight: 4 bits, out_features a multiple of 8, scales that float16 holds exactly.
        name: what to call the linear in an error.
    Returns:
        qweight int32 [in, out // 8], qzeros int32 [n_groups, out // 8], scales float16 [n_groups, out], contiguous.
    Raises:
        BadInputError: the format cannot hold this weight; the message says why.
    """
    if weight.bits != BITS:
        raise BadInputError(f"{name} has {weight.bits} bits, but the AWQ format holds only {BITS}; use another format.")
    if weight.out_features % WORD:
        raise BadInputError(
            f"{name} has {weight.out_features} outputs, but the AWQ format needs a multiple of {WORD}; "
            "leave this linear unquantized."
        )
    return {
        "qweight": _pack(weight.q.T),
        "qzeros": _pack(weight.zero_point.T),
        "scales": _as_float16(weight.scale, name).T.contiguous(),
    }


def unpack_awq(tensors: Mapping[str, torch.Tensor], group_size: int, name: str = "weight") -> IntWeight:
    """Read the tensors `qweight`, `qzeros` and `scales` of one linear (other keys are ignored).

    Args:
        tensors: qweight int32 [in, out // 8], qzeros int32 [n_groups, out // 8], scales float [n_groups, out].
        group_size: inputs per group, -1 for one group over all inputs.
        name: what to call the linear in an error.
    Raises:
        BadInputError: a tensor is missing, or has a wrong dtype or shape; names the tensor and both shapes.
    """
    _check_dtypes(tensors, name)
    qweight, qzeros, scales = (tensors[key] for key in TENSORS)
    in_features, out_features = qweight.shape[0], qweight.shape[1] * WORD
    group_size = in_features if group_size == -1 else group_size
    if group_size <= 0 or in_features % group_size:
        raise BadInputError(f"{name}.qweight has {in_features} inputs, which groups of {group_size} do not divide.")
    n_groups = in_features // group_size
    _check_shape(qzeros, (n_groups, out_features // WORD), f"{name}.qzeros", group_size)
    _check_shape(scales, (n_groups, out_features), f"{name}.scales", group_size)
    return IntWeight(_unpack(qweight).T.contiguous(), scales.T.contiguous(), _unpack(qzeros).T.contiguous(), group_size)


def _pack(values: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns] to int32 [rows, columns // 8]; one nibble at a time, so the peak is two int32 matrices."""
    columns = values.unflatten(1, (-1, WORD))  # [rows, words, 8]
    words = torch.zeros(columns.shape[:2], dtype=torch.int32, device=values.device)
    for nibble, column in enumerate(NIBBLE_ORDER):
        words |= columns[:, :, column].to(torch.int32) << (BITS * nibble)
    return words


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, words] to uint8 [rows, words * 8]."""
    values = torch.empty((*words.shape, WORD), dtype=torch.uint8, device=words.device)
    for nibble, column in enumerate(NIBBLE_ORDER):
        values[:, :, column] = ((words >> (BITS * nibble)) & (2**BITS - 1)).to(torch.uint8)
    return values.flatten(1)


def _as_float16(scale: torch.Tensor, name: str) -> torch.Tensor:
    """The same scales in float16. Rounding them here would move every weight after its integer was chosen."""
    half = scale.to(torch.float16)
    if not torch.equal(half.float(), scale.float()):
        changed = int((half.float() != scale.float()).sum())
        raise BadInputError(
            f"{name} has {changed} of {scale.numel()} scales that float16 does not hold exactly; "
            "round the scales to float16 before rounding the weights."
        )
    return half


def _check_dtypes(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    for key in TENSORS:
        if key not in tensors:
            raise BadInputError(f"{name}.{key} is missing; the checkpoint is incomplete or not in the AWQ GEMM format.")
        tensor = tensors[key]
        fits = tensor.dtype in SCALE_DTYPES if key == "scales" else tensor.dtype == torch.int32
        if not fits or tensor.ndim != 2:
            raise BadInputError(
                f"{name}.{key} is {tensor.dtype} {list(tensor.shape)}; the AWQ GEMM format has "
                f"{'float16' if key == 'scales' else 'int32'} with two dimensions there."
            )


def _check_shape(tensor: torch.Tensor, expected: tuple[int, int], name: str, group_size: int) -> None:
    if tuple(tensor.shape) != expected:
        raise BadInputError(
            f"{name} has shape {list(tensor.shape)}, expected {list(expected)} for groups of {group_size} inputs; "
            "check group_size in the checkpoint's config.json."
        )
