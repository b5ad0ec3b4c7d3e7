"""What calibration leaves behind of a linear's inputs: second moments, enough for every search that follows.

The output error of a weight W' against W over all calibration tokens is

    mean_t |x_t W'^T - x_t W^T|^2  =  tr(D G D^T),   D = W' - W,  G = E[x x^T],

so after one pass over the tokens no grid point needs a forward pass. Means are weighted where tokens have weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from awq_engine.capture import PassStoppedError


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


TokenWeights = Callable[[], torch.Tensor | None]
"""The weights of the tokens that run now, float32 [batch, seq]; None when all count the same."""


def unweighted() -> None:
    """All tokens count the same."""


def weigh(rows: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """Each of `rows` [n, in] times its token's weight, and the sum of these weights.

    A linear behind a router reads only the tokens sent to it, in an order that is the router's own business: rows that
    are not one per token, or some for each in one order after the other, keep weight 1.
    """
    if weights is None or not len(rows) or len(rows) % weights.numel():
        return rows, float(len(rows))
    weights = weights.to(rows.device).reshape(-1, 1).repeat(len(rows) // weights.numel(), 1)
    return rows * weights, float(weights.sum())


class Accumulator:
    """Sums the moments of what one linear is called with."""

    def __init__(self, in_features: int, device: torch.device, weights: TokenWeights) -> None:
        self.gram = torch.zeros(in_features, in_features, device=device)
        self.absolute = torch.zeros(in_features, device=device)
        self.weights = weights
        self.total = 0.0
        self.n_tokens = 0

    def hook(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.add(inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float())

    def add(self, x: torch.Tensor) -> None:
        """Take in `x`, float32 [tokens, in]."""
        weighted, weight = weigh(x, self.weights())
        self.gram.addmm_(weighted.T, x)
        self.absolute += weighted.abs().sum(0)
        self.total += weight
        self.n_tokens += int(x.any(-1).sum())  # an expert may be called with zeros in the place of others' tokens

    def result(self) -> InputStatistics:
        if not self.n_tokens:  # nothing is known of the inputs: every channel counts alike
            return InputStatistics(torch.eye(len(self.gram), device=self.gram.device), self.absolute + 1, 0)
        total = self.total or 1.0
        return InputStatistics(self.gram.div_(total), self.absolute.div_(total), self.n_tokens)


def collect_output_statistics(
    norm: nn.Module, width: int, forward: Callable[[], None], weights: TokenWeights = unweighted
) -> InputStatistics:
    """The statistics of what `norm` gives out, [..., width], while `forward` runs."""
    accumulator = Accumulator(width, next(norm.parameters()).device, weights)

    def hook(module: nn.Module, _: object, output: torch.Tensor) -> None:
        accumulator.hook(module, (output,))

    handle = norm.register_forward_hook(hook)
    try:
        forward()
    finally:
        handle.remove()
    return accumulator.result()


def collect_statistics(
    linears: Iterable[nn.Linear], forward: Callable[[], None], weights: TokenWeights = unweighted
) -> list[InputStatistics]:
    """Run `forward` once and return the input statistics of each of `linears`, in order."""
    linears = list(linears)
    accumulators = [Accumulator(linear.in_features, linear.weight.device, weights) for linear in linears]
    handles = [
        linear.register_forward_pre_hook(accumulator.hook)
        for linear, accumulator in zip(linears, accumulators, strict=True)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return [accumulator.result() for accumulator in accumulators]


class Tap:
    """What one linear reads, pass by pass; a pass ends as soon as the linear has read all it will."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self._calls = 0
        """How often a pass calls the linear: as often as the first did, which ran to its end."""

    def read(self, run: Callable[[], object]) -> torch.Tensor:
        """What the linear reads while `run` runs, float32 [tokens, in]."""
        caught: list[torch.Tensor] = []

        def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            caught.append(inputs[0].reshape(-1, inputs[0].shape[-1]).float())
            if len(caught) == self._calls:
                raise PassStoppedError

        handle = self._linear.register_forward_pre_hook(catch)
        try:
            run()
        except PassStoppedError:
            pass
        finally:
            handle.remove()
        self._calls = max(self._calls, len(caught))
        nothing = torch.zeros(0, self._linear.in_features, device=self._linear.weight.device)
        return torch.cat([nothing, *caught])
