"""Fused experts as one `nn.Linear` each, under the model's own code.

transformers keeps the experts of a mixture in one parameter, such as `gate_up_proj` [experts, 2 * width, hidden], and
multiplies with `gate_up_proj[e]`. Everything here works on linears, so the experts become modules of their own, and a
`FusedWeight` takes the parameter's place: whatever product the model's forward makes with it is answered by calling
those linears. Hooks, folds, statistics and quantized linears then need to know nothing of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Expert(nn.Module):
    """Holds the linears of one expert; what they make of their inputs is up to the forward of the mixture."""


@dataclass(frozen=True)
class ExpertLinear:
    """Where a linear of an expert is: `owner.number.name`."""

    owner: str
    number: int
    name: str


def expert_linears(block: nn.Module) -> dict[str, ExpertLinear]:
    """By name inside the block, the linears that belong to an expert."""
    found: dict[str, ExpertLinear] = {}
    for path, module in block.named_modules():
        if isinstance(module, Expert):
            owner, _, number = path.rpartition(".")
            found |= {f"{path}.{name}": ExpertLinear(owner, int(number), name) for name, _ in module.named_children()}
    return found


@dataclass(frozen=True)
class FusedWeight:
    """Stands where a fused parameter stood and answers products with it, expert by expert."""

    owner: nn.Module
    """Its children "0", "1", ... are the experts."""
    names: tuple[str, ...]
    """The linears inside an expert whose outputs lie side by side."""
    shape: torch.Size
    transposed: bool
    """[experts, in, out], ready for x @ weight[e]."""
    interleaved: bool = False
    """Outputs of the linears alternate instead of following each other."""

    def __getitem__(self, index: Any) -> ExpertWeight:
        return ExpertWeight(self, int(index), self.transposed)

    def view(self, *shape: Any) -> FusedWeight:
        """Experts stacked in the rows of a matrix are viewed as [experts, ., .] before one is picked."""
        return self

    def transpose(self, first: int, second: int) -> FusedWeight:
        """The last two dimensions exchanged."""
        assert {first % 3, second % 3} == {1, 2}
        shape = torch.Size((self.shape[0], self.shape[2], self.shape[1]))
        return replace(self, shape=shape, transposed=not self.transposed)

    def apply(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What expert `index` makes of x [tokens, in]: [tokens, out]."""
        expert = self.owner.get_submodule(str(index))
        outputs = [expert.get_submodule(name)(x) for name in self.names]
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack(outputs, -1).flatten(-2) if self.interleaved else torch.cat(outputs, -1)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> torch.Tensor:
        x, fused = args[:2]
        if func is not torch.bmm or not isinstance(fused, cls) or not fused.transposed:
            raise _unknown(func)
        return torch.stack([fused.apply(index, x[index]) for index in range(fused.shape[0])])


@dataclass(frozen=True)
class ExpertWeight:
    """One expert's matrix out of a `FusedWeight`."""

    fused: FusedWeight
    index: int
    transposed: bool

    @property
    def T(self) -> ExpertWeight:  # noqa: N802 - a tensor's own name
        return replace(self, transposed=not self.transposed)

    def float(self) -> ExpertWeight:
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> torch.Tensor:
        x, weight = args[:2]
        if not isinstance(weight, cls) or _PRODUCTS.get(func) is not weight.transposed:
            raise _unknown(func)
        return weight.fused.apply(weight.index, x)


_PRODUCTS: dict[Callable[..., Any], bool] = {
    F.linear: False, torch.matmul: True, torch.Tensor.matmul: True, torch.Tensor.__matmul__: True,
}  # fmt: skip
"""Products of x with an expert's matrix, and whether they want it as [in, out]."""


@dataclass(frozen=True)
class FusedBias:
    """Stands where a fused bias [experts, out] stood. The linears add their biases themselves, so this adds nothing."""

    def __getitem__(self, index: Any) -> FusedBias:
        return self

    def float(self) -> FusedBias:
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> torch.Tensor:
        if func not in (torch.add, torch.Tensor.add, torch.Tensor.__add__) or not isinstance(args[1], cls):
            raise _unknown(func)
        return args[0]


def _unknown(func: Any) -> TypeError:
    return TypeError(f"an expert's weight cannot be used in {getattr(func, '__name__', func)}")
