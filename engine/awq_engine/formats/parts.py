"""The stored tensors of one linear, taken out and checked: what is missing or misshapen is named, never guessed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from awq_engine.errors import BadInputError
from awq_kernels.int_weight import SCALE_DTYPES, IntWeight

Parts = Mapping[str, torch.Tensor]
"""The tensors of one linear by the last part of their names: `qweight`, `weight_scale`, ..."""
INT32 = (torch.int32,)
FLOATS = SCALE_DTYPES


def take(parts: Parts, part: str, name: str, dtypes: Collection[torch.dtype], ndim: int = 2) -> torch.Tensor:
    """The tensor `part` of the linear `name`; `BadInputError` when it is absent, of another kind or not finite."""
    if part not in parts:
        raise BadInputError(f"{name}.{part} is missing; the checkpoint is incomplete or in another format.")
    tensor = parts[part]
    if tensor.dtype not in dtypes or tensor.ndim != ndim:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise BadInputError(
            f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}; expected {wanted} with {ndim} "
            f"dimension{'s' * (ndim != 1)} there."
        )
    if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
        broken = int((~finite).sum())
        raise BadInputError(
            f"{name}.{part} holds {broken} of {tensor.numel()} values that are no finite numbers; download it again."
        )
    return tensor


def check_shape(tensor: torch.Tensor, expected: tuple[int, ...], name: str, group_size: int) -> None:
    """`BadInputError` with both shapes when they differ."""
    if tuple(tensor.shape) != expected:
        raise BadInputError(
            f"{name} has shape {list(tensor.shape)}, expected {list(expected)} for groups of {group_size} inputs; "
            "check group_size in the checkpoint's config.json."
        )


def inputs_per_group(in_features: int, group_size: int, name: str) -> int:
    """The group size with -1 resolved; `BadInputError` when groups do not divide the inputs of the tensor `name`."""
    found = in_features if group_size == -1 else group_size
    if found <= 0 or in_features % found:
        raise BadInputError(f"{name} has {in_features} inputs, which groups of {found} do not divide.")
    return found


def stored_scale(weight: IntWeight, dtypes: Collection[torch.dtype], name: str) -> torch.Tensor:
    """The steps in the first of `dtypes` that holds every one of them exactly, [out, n_groups].

    Rounding them here would move every weight after its integer was chosen, so that is an error instead.
    """
    for dtype in dtypes:
        if torch.equal(weight.scale.to(dtype).float(), weight.scale.float()):
            return weight.scale.to(dtype)
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    changed = int((weight.scale.to(next(iter(dtypes))).float() != weight.scale.float()).sum())
    raise BadInputError(
        f"{name} has {changed} of {weight.scale.numel()} scales that {wanted} does not hold exactly; "
        "store it in a format that keeps its scales (compressed-tensors)."
    )
