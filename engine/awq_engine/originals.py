"""A block's weights as they were before anything changed them, in no more memory than their file takes.

The block computes in float32; what its weights were is kept in the narrow dtype they came from wherever that gives back
every bit (it is checked, weight by weight). For a while the block can compute with them again: each module's weights
are widened just before it runs and dropped right after, so a teacher costs one module, not one block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from awq_engine.quantize import row_slices

NARROW_DTYPES = (torch.bfloat16, torch.float16)


class Originals:
    """The parameters of `block` at the moment of construction."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._kept = {name: narrowed(parameter.data) for name, parameter in block.named_parameters()}

    def __getitem__(self, name: str) -> torch.Tensor:
        """One parameter as it is kept, of any float dtype; not to be written to."""
        return self._kept[name]

    def restore(self) -> None:
        """Give the block its weights back, also where there are none (`rounded`)."""
        for name, parameter in self._block.named_parameters():
            if parameter.shape != self._kept[name].shape:
                parameter.data = parameter.data.new_empty(self._kept[name].shape)
            parameter.data.copy_(self._kept[name])

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the block computes what it originally did; its present weights are untouched.

        Vectors change places for the whole time, matrices only while their module runs. A matrix that is read past its
        module stays as it is, which is right: such a matrix is never changed.
        """
        with contextlib.ExitStack() as stack:
            for prefix, module in self._block.named_modules():
                matrices = {name for name, p in module._parameters.items() if p is not None and p.ndim > 1}
                if vectors := set(module._parameters) - matrices:
                    stack.enter_context(self._in_place(module, prefix, vectors))
                if matrices:
                    self._while_running(stack, module, prefix, matrices)
            yield

    def _while_running(self, stack: contextlib.ExitStack, module: nn.Module, prefix: str, names: set[str]) -> None:
        """Let `module` run with its original parameters `names` until `stack` unwinds."""
        running: list[contextlib.ExitStack] = []

        def before(*_: object) -> None:
            running.append(contextlib.ExitStack())
            running[-1].enter_context(self._in_place(module, prefix, names))

        def after(*_: object) -> None:
            running.pop().close()

        stack.callback(lambda: [leftover.close() for leftover in reversed(running)])  # a pass that was stopped
        stack.callback(module.register_forward_pre_hook(before, prepend=True).remove)
        stack.callback(module.register_forward_hook(after).remove)

    @contextlib.contextmanager
    def _in_place(self, module: nn.Module, prefix: str, names: set[str]) -> Iterator[None]:
        present = module._parameters
        original = {
            name: nn.Parameter(self[f"{prefix}.{name}".lstrip(".")].float(), requires_grad=False)
            for name in names
            if present[name] is not None
        }
        module._parameters = {**present, **original}
        try:
            yield
        finally:
            module._parameters = present


def narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the narrowest dtype that holds every value exactly."""
    for dtype in NARROW_DTYPES:
        narrow = tensor.to(dtype)
        if _equal(narrow, tensor):
            return narrow
    return tensor.clone()


def _equal(narrow: torch.Tensor, tensor: torch.Tensor) -> bool:
    if tensor.ndim != 2:
        return torch.equal(narrow.to(tensor.dtype), tensor)
    return all(torch.equal(narrow[rows].to(tensor.dtype), tensor[rows]) for rows in row_slices(tensor))
