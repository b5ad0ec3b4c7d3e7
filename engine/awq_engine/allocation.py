"""Which linear gets how many bits, when a size is given (`--target-bpw`) instead of a shape.

Linears that servers load as one matrix form a site and are treated alike. Each site has options: ways to round it, each
with the bytes it takes and the loss that was measured for it (`rounding_cost.py`). Losses of different sites add up, so
the best assignment is a knapsack, and greedy steps are within one step of the optimum:

    start with every site's smallest option
    while a step to a better option fits:  take the one that saves most loss per byte

Pure and deterministic; standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from awq_engine.spec import QuantSpec


@dataclass(frozen=True)
class Option:
    """One way to treat a site."""

    spec: QuantSpec | None
    """None leaves it as it is."""
    n_bytes: int
    loss: float
    """Forecast rise of the model's KL, nats per token."""


Options = Mapping[str, Sequence[Option]]
"""By site; never empty."""


def allocate(options: Options, budget: int) -> dict[str, Option]:
    """The option of every site that together lose least within `budget` bytes; the smallest ones if nothing fits."""
    frontiers = {site: _frontier(choices) for site, choices in options.items()}
    taken = dict.fromkeys(frontiers, 0)
    left = budget - sum(frontier[0].n_bytes for frontier in frontiers.values())
    steps = {site: _best_step(frontier, 0, left) for site, frontier in frontiers.items()}
    while possible := [(step.gain, -step.n_bytes, site) for site, step in steps.items() if step]:
        _, cost, site = max(possible)
        step = steps[site]
        assert step is not None
        taken[site], left = step.position, left + cost
        for name, other in steps.items():
            if name == site or (other and other.n_bytes > left):
                steps[name] = _best_step(frontiers[name], taken[name], left)
    return {site: frontier[taken[site]] for site, frontier in frontiers.items()}


@dataclass(frozen=True)
class _Step:
    """A move of one site to a larger option."""

    gain: float
    """Loss saved per byte."""
    n_bytes: int
    position: int


def _best_step(frontier: list[Option], at: int, left: int) -> _Step | None:
    """The step from `at` that saves most per byte among those of at most `left` bytes."""
    here = frontier[at]
    steps = [
        _Step((here.loss - there.loss) / (there.n_bytes - here.n_bytes), there.n_bytes - here.n_bytes, position)
        for position, there in enumerate(frontier[at + 1 :], at + 1)
        if there.n_bytes - here.n_bytes <= left
    ]
    return max(steps, key=lambda step: step.gain, default=None)


def _frontier(choices: Sequence[Option]) -> list[Option]:
    """The options worth having: each larger than the one before, and better."""
    frontier: list[Option] = []
    for choice in sorted(choices, key=lambda option: (option.n_bytes, option.loss)):
        if not frontier or choice.loss < frontier[-1].loss:
            frontier.append(choice)
    return frontier
