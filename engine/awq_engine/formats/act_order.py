"""Inputs grouped in another order than they stand in (act-order): read, and never written.

GPTQ with `desc_act` rounds the loudest inputs first and gives each run of `group_size` inputs in that order one step;
`g_idx` [in] says which group an input fell into. Sorted by group the columns have plain consecutive groups again, and
the activations are taken in that order instead.
"""

from __future__ import annotations

import torch

from awq_engine.errors import BadInputError
from awq_engine.formats.parts import INT32, Parts, check_shape, take
from awq_kernels.int_weight import IntWeight


def input_order(parts: Parts, part: str, in_features: int, group_size: int, name: str) -> torch.Tensor | None:
    """int64 [in_features], the inputs sorted by their group; None where groups are consecutive or `part` is absent.

    Raises:
        BadInputError: the groups do not all have `group_size` inputs.
    """
    if part not in parts:
        return None
    groups = take(parts, part, name, INT32, ndim=1).long()
    check_shape(groups, (in_features,), f"{name}.{part}", group_size)
    if int(groups[0]) == -1:  # compressed-tensors' mark for "not initialized"
        return None
    order = torch.argsort(groups, stable=True)
    plain = torch.arange(in_features, device=groups.device) // group_size
    if not torch.equal(groups[order], plain):
        raise BadInputError(f"{name}.{part} does not put {group_size} inputs into each group; it cannot be run here.")
    return None if torch.equal(groups, plain) else order


def refuse_order(weight: IntWeight, name: str) -> None:
    """`BadInputError` for a weight whose groups are not consecutive inputs."""
    if weight.order is not None:
        raise BadInputError(
            f"{name} groups its inputs in an order of its own (act-order), which no format written here can hold; "
            "quantize the original model instead."
        )
