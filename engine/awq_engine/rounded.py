"""The rounded linears of a block: integers, and floats only while they run.

The block has to compute while it is quantized, but a linear's floats take four to eight times its integers. So they are
made just before the linear runs and dropped right after: a block half done costs one linear, not all that are done.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Self

from torch import nn

from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize


@dataclass(frozen=True)
class _Floats:
    """Of one linear; hooks that another process can be sent."""

    parameter: nn.Parameter
    weight: IntWeight

    def fill(self, module: nn.Module, _: object) -> None:
        if module.weight is self.parameter:  # and not an original in its place
            self.parameter.data = dequantize(self.weight)

    def drop(self, *_: object) -> None:
        self.parameter.data = self.parameter.data.new_empty(0)


class Rounded:
    """Linears of `block` that are rounded already; what gave up its floats gets them back with `fill`.

    A context manager: at its end, be it an error, the block holds on to nothing here.
    """

    def __init__(self, block: nn.Module) -> None:
        self.weights: dict[str, IntWeight] = {}
        """By linear name inside the block."""
        self._block = block
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def add(self, name: str, weight: IntWeight) -> None:
        """Let the linear `name` compute with `weight` from now on."""
        linear = self._block.get_submodule(name)
        floats = _Floats(linear.get_parameter("weight"), weight)
        floats.drop()
        self.weights[name] = weight
        self._hooks.callback(linear.register_forward_pre_hook(floats.fill).remove)
        self._hooks.callback(linear.register_forward_hook(floats.drop).remove)

    def fill(self) -> None:
        """Give all of them floats, to keep."""
        self._hooks.close()
        for name, weight in self.weights.items():
            self._block.get_submodule(name).get_parameter("weight").data = dequantize(weight)

    def forget(self) -> None:
        """Leave them without weights, for others to be put there."""
        self._hooks.close()
        self.weights.clear()
