"""What a decoder block does beside attention: the usual gated MLP taken apart, anything else as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from awq_engine.joined import join_linears
from awq_engine.steps import Steps

APART = {"gate_proj", "up_proj", "down_proj", "act_fn"}
JOINED = {"gate_up_proj", "down_proj", "activation_fn"}
"""What a gated MLP is made of, as most models have it and as Phi does."""


class Mlp(Protocol):
    """From normed activations [n, hidden] to what is added to them, alike."""

    def __call__(self, steps: Steps, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate) * up), gate and up as one product."""

    gate_up: Callable[[torch.Tensor], torch.Tensor]
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, steps: Steps, x: torch.Tensor) -> torch.Tensor:
        return self.down(steps.gate(self.gate_up(x), self.activation))


@dataclass(frozen=True)
class OtherMlp:
    """A mixture of experts, mostly."""

    module: nn.Module

    @property
    def steady(self) -> bool:
        """Whether it never asks which experts were chosen (see `stacked_experts`), so that a graph can hold it."""
        mixtures = (module for module in self.module.modules() if hasattr(module, "_apply_gate"))
        return all("forward" in vars(mixture) for mixture in mixtures)

    def __call__(self, steps: Steps, x: torch.Tensor) -> torch.Tensor:
        return self.module(x[None])[0].contiguous()


def parts_of(module: nn.Module) -> set[str]:
    """What a module is made of; dropout is for training."""
    return {name for name, child in module.named_children() if not isinstance(child, nn.Dropout)}


def read_mlp(module: Any) -> Mlp:
    """The linears of `module` that read the same input are joined in place and stay usable."""
    parts = parts_of(module)
    if parts == APART:
        return GatedMlp(join_linears([module.gate_proj, module.up_proj]), module.act_fn, module.down_proj)
    if parts == JOINED:
        return GatedMlp(module.gate_up_proj, module.activation_fn, module.down_proj)
    return OtherMlp(module)
