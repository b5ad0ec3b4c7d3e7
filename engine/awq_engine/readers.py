"""Everything that reads the output of a norm, found by dividing it and looking who notices.

In a mixture of experts one norm feeds the router, the shared expert and, row by row, every expert that a token is sent
to. A channel scale cancels only if all of them are multiplied. Here the norm is divided by powers of two, and every
module that then sees its input divided by just these gets it back undivided: so the routing stays what it was, the
experts are called with the same tokens, and when the block's output is the same to the last bit, nobody was missed.

Powers of two are also the only scales that such a fold may have when a reader stays in floats: they change exponents
alone, so a router stored in bfloat16 decides exactly as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from awq_engine.folds import Fold, FoldKind, InputGroup, divide_producer


def norms_before(block: nn.Module, group: InputGroup) -> Iterator[str]:
    """Modules that ran before a group and multiply channels of its width, latest first."""
    for name in group.earlier:
        weight = block.get_submodule(name)._parameters.get("weight")
        if weight is not None and weight.ndim == 1 and weight.numel() == group.in_features:
            yield name


def find_readers(
    block: nn.Module, norm: str, kind: FoldKind, forward: Callable[[], torch.Tensor], seed: int = 0
) -> list[str]:
    """Names of the modules with a matrix that read what `norm` gives out; none when others notice its change too.

    Args:
        kind: how the norm is divided.
        forward: runs the block on the probe input, float32 [batch, seq, hidden] -> the same.
    """
    weight = block.get_submodule(norm).get_parameter("weight")
    width = weight.numel()
    fold = Fold(norm, (), kind, width)
    saved = [(p.data, p.data.clone()) for p in block.get_submodule(norm).parameters(recurse=False)]
    candidates = [name for name, module in block.named_modules() if _width(module) == width]
    calls: dict[str, list[torch.Tensor]] = {name: [] for name in candidates}
    with _hooked(block, candidates, lambda name, x: calls[name].append(x)):
        baseline = forward()
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp2(torch.randint(-1, 2, (width,), generator=generator).float()).to(weight.device)
    readers: dict[str, None] = {}

    def give_back(name: str, x: torch.Tensor) -> torch.Tensor | None:
        before = calls[name].pop(0) if calls[name] else None
        if before is None or x.shape != before.shape or not torch.equal(x * scale, before) or torch.equal(x, before):
            return None
        readers[name] = None
        return x * scale

    try:
        divide_producer(block, fold, scale)
        with _hooked(block, candidates, give_back):
            complete = torch.equal(forward(), baseline)
    finally:
        for parameter, before in saved:
            parameter.copy_(before)
    return list(readers) if complete else []


def _width(module: nn.Module) -> int | None:
    weight = module._parameters.get("weight")
    return weight.shape[1] if weight is not None and weight.ndim == 2 else None


@contextlib.contextmanager
def _hooked(
    block: nn.Module, names: list[str], look: Callable[[str, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Inside, `look` sees the first argument of every call of `names`; what it returns takes its place."""

    def hook(name: str) -> Callable[..., tuple[object, ...] | None]:
        def before(_: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
            if not args or not isinstance(args[0], torch.Tensor):
                return None
            instead = look(name, args[0])
            return None if instead is None else (instead, *args[1:])

        return before

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
