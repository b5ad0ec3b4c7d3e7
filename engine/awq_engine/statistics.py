"""What calibration leaves behind of a linear's inputs: second moments, enough for every search that follows.

The output error of a weight W' against W over all calibration tokens is

    mean_t |x_t W'^T - x_t W^T|^2  =  tr(D G D^T),   D = W' - W,  G = E[x x^T],

so after one pass over the tokens no grid point needs a forward pass. Means are weighted where tokens have weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from awq_engine.capture import PassStoppedError
from awq_engine.passes import Batch
from awq_engine.quantize import row_slices


@dataclass
class InputStatistics:
    """Moments of the vectors a group of linears reads."""

    gram: torch.Tensor
    """float32 [in, in]: E[x x^T]."""
    act_mean: torch.Tensor
    """float32 [in]: E|x|, AWQ's saliency."""
    n_tokens: int
    """Vectors seen, whatever their weight."""
    feedback: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """What error feedback derives from `gram`, once it has; shared by all statistics that share `gram`."""

    def scaled(self, channel_scale: torch.Tensor) -> InputStatistics:
        """The statistics of x / channel_scale; takes over the memory of these, which must not be used again."""
        gram = self.gram.div_(channel_scale[:, None]).div_(channel_scale[None, :])
        return InputStatistics(gram, self.act_mean / channel_scale, self.n_tokens)

    def output_mse(self, difference: Iterable[torch.Tensor]) -> float:
        """Mean squared change of the outputs when a weight changes by `difference`, in pieces of float32 [rows, in]."""
        sums, n_rows = [], 0
        for rows in difference:
            sums.append((rows @ self.gram).mul_(rows).sum())
            n_rows += len(rows)
        return float(torch.stack(sums).sum() / n_rows)


def weigh(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """Each of `rows` [n, in] times its token's weight, and the sum of these weights.

    A linear behind a router reads only the tokens sent to it, in an order that is the router's own business: rows that
    are not one per token, or some for each in one order after the other, keep weight 1.
    """
    if weights is None or not len(rows) or len(rows) % weights.numel():
        return rows, float(len(rows))
    weights = weights.to(rows.device).reshape(-1, 1).repeat(len(rows) // weights.numel(), 1)
    return rows * weights, float(weights.sum())


def add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`total` plus left^T right, float32 [n, m] of [tokens, n] and [tokens, m]; None counts as zeros.

    The product is made before it is added, so that it is the same numbers wherever it is made.
    """
    if total is None:
        total = left.new_zeros(left.shape[1], right.shape[1])
    for rows in row_slices(total):
        total[rows] += left[:, rows].T @ right
    return total


def added(total: torch.Tensor | None, part: torch.Tensor | None) -> torch.Tensor | None:
    """The sum, in the place of `total`; None counts as zeros."""
    if total is None or part is None:
        return part if total is None else total
    return total.add_(part)


@dataclass
class Moments:
    """Sums over what one linear is called with."""

    gram: torch.Tensor | None = None
    absolute: torch.Tensor | None = None
    total: float = 0.0
    """Of the tokens' weights."""
    n_tokens: int = 0
    calls: int = 0

    def add(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Take in `x`, float32 [tokens, in], with the weights of the batch's tokens, float32 [batch, seq]."""
        weighted, weight = weigh(x, weights)
        self.gram = add_product(self.gram, weighted, x)
        self.absolute = added(self.absolute, weighted.abs().sum(0))
        self.total += weight
        self.n_tokens += int(x.any(-1).sum())  # an expert may be called with zeros in the place of others' tokens
        self.calls += 1

    def merge(self, other: Moments) -> None:
        """Add what another one has taken in."""
        self.gram, self.absolute = added(self.gram, other.gram), added(self.absolute, other.absolute)
        self.total += other.total
        self.n_tokens += other.n_tokens
        self.calls += other.calls

    def means(self, width: int, device: torch.device) -> InputStatistics:
        """The statistics of vectors of `width` numbers, on `device`."""
        if not self.n_tokens or self.gram is None or self.absolute is None:  # nothing known: every channel counts alike
            return InputStatistics(torch.eye(width, device=device), torch.ones(width, device=device), 0)
        total = self.total or 1.0
        gram, absolute = self.gram.to(device), self.absolute.to(device)
        return InputStatistics(gram.div_(total), absolute.div_(total), self.n_tokens)


@dataclass
class MomentsByName:
    """Of several linears."""

    found: dict[str, Moments] = field(default_factory=dict)

    def merge(self, other: MomentsByName) -> None:
        for name, moments in other.found.items():
            self.found.setdefault(name, Moments()).merge(moments)


@dataclass(frozen=True)
class ReadInputs:
    """Takes in what some linears of a block are called with."""

    names: Sequence[str]

    def __call__(self, batch: Batch, sums: MomentsByName) -> torch.Tensor:
        """The block's output."""
        with contextlib.ExitStack() as stack:
            for name in self.names:
                hook = _hook(sums.found.setdefault(name, Moments()), batch)
                handle = batch.block.get_submodule(name).register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            return batch.output()


def _hook(moments: Moments, batch: Batch) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    return lambda _, args: moments.add(_rows(args[0]), batch.token_weights())


@dataclass(frozen=True)
class ReadOnlyInput:
    """Takes in what one linear is called with, in passes that go no further."""

    name: str
    calls: int
    """In a pass."""

    def __call__(self, batch: Batch, sums: Moments) -> None:
        sums.add(read_input(batch.linear(self.name), batch.output, self.calls), batch.token_weights())


@dataclass(frozen=True)
class ReadOutputs:
    """Takes in what one module gives out, [..., width]."""

    name: str

    def __call__(self, batch: Batch, sums: Moments) -> None:
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            sums.add(_rows(output), batch.token_weights())

        handle = batch.block.get_submodule(self.name).register_forward_hook(hook)
        try:
            batch.output()
        finally:
            handle.remove()


def read_input(linear: nn.Linear, run: Callable[[], object], calls: int = 0) -> torch.Tensor:
    """What `linear` is called with while `run` runs, float32 [tokens, in]; that many calls end it, 0 do not."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        caught.append(_rows(args[0]))
        if len(caught) == calls:
            raise PassStoppedError

    handle = linear.register_forward_pre_hook(catch)
    try:
        run()
    except PassStoppedError:
        pass
    finally:
        handle.remove()
    return torch.cat([torch.zeros(0, linear.in_features, device=linear.weight.device), *caught])


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1, x.shape[-1]).float()
