"""Every matrix that can be quantized made an `nn.Linear`, whatever the architecture made it.

The quantizer and the readers of quantized models know linears and nothing else. Two kinds of modules hide them:
`Conv1D` (GPT-2) keeps its weight transposed, and mixtures of experts fuse theirs into one parameter. Both are rebuilt
in the empty model; each new parameter says which part of which original parameter it is, so that weights find their
way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from awq_engine.experts import Expert, FusedBias, FusedWeight

JOINED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Fused parameters in which several linears lie side by side."""
FUSED = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""Fused parameters, [experts, out, in] or, where the module says so, [experts, in, out]."""
TRANSPOSED = ("Llama4TextExperts",)
"""[experts, in, out] without saying so: this class is not under transformers' interface for experts."""
LISTS = ("JetMoeParallelExperts",)
"""Their `weight` [experts, out, in] is all they have."""
STACKED = {"DbrxExpertGLU": ("moe_num_experts", {"w1": False, "v1": False, "w2": True})}
"""Experts stacked in the rows of a matrix: attribute with their number, parameter -> stored [in, out]."""


@dataclass(frozen=True)
class Part:
    """The parameter of a linear as a part of a parameter of transformers' own model."""

    whole: str
    """That parameter's name."""
    rows: tuple[int, int] | None = None
    """One expert's range along the first dimension; None takes all."""
    expert: int = 0
    position: int = 0
    """Of the linear among those that lie side by side in an expert."""
    outputs: slice | None = None
    """The linear's outputs among those of the expert; None takes all."""
    transposed: bool = False
    """Stored as [in, out]."""

    def take(self, stored: Any, ndim: int) -> torch.Tensor:
        """The weight [out, in] (`ndim` 2) or bias [out] (1) out of the whole, a tensor or a safetensors slice."""
        piece = stored[:] if self.rows is None else stored[self.rows[0] : self.rows[1]]
        piece = piece.reshape(piece.shape[-ndim:])
        piece = piece.T if self.transposed else piece
        return piece if self.outputs is None else piece[self.outputs]


def linearize(model: nn.Module) -> dict[str, Part]:
    """Rebuild `model`, whose parameters are on the meta device; return what its new parameters are parts of."""
    parts: dict[str, Part] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            parts |= _replace_conv1d(model, name, module)
        elif fused := list(_fused_weights(name, module)):
            if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                config._experts_implementation = "eager"  # the one that picks expert by expert
            for weight in fused:
                parts |= _split(name, module, weight)
    return parts


def is_plain(linear: nn.Linear) -> bool:
    """Whether a linear, maybe of a class of its own, multiplies by its weight and adds its bias and nothing else.

    Routers and grouped projections can be linears by their class; a quantized linear in their place would not do.
    """
    if type(linear).forward is nn.Linear.forward:
        return True
    twin = copy.copy(linear)
    twin._parameters = {
        name: None if p is None else nn.Parameter(torch.randn(p.shape), requires_grad=False)
        for name, p in linear._parameters.items()
    }
    x = torch.randn(1, 2, linear.in_features)
    try:
        found = twin(x)
        return torch.allclose(found, F.linear(x, twin.weight, twin.bias), rtol=1e-3, atol=1e-3)
    except (TypeError, ValueError, RuntimeError, AttributeError):  # a tuple, another shape, another argument
        return False


def _replace_conv1d(model: nn.Module, name: str, module: Conv1D) -> dict[str, Part]:
    in_features, out_features = module.weight.shape
    linear = nn.Linear(in_features, out_features, device="meta").requires_grad_(False)
    model.set_submodule(name, linear)
    return {f"{name}.weight": Part(f"{name}.weight", transposed=True), f"{name}.bias": Part(f"{name}.bias")}


@dataclass(frozen=True)
class _Fused:
    """A parameter that holds the weights of all experts."""

    parameter: str
    names: tuple[str, ...]
    """Of the linears inside an expert."""
    n_experts: int
    transposed: bool
    interleaved: bool


def _fused_weights(path: str, module: nn.Module) -> Iterator[_Fused]:
    kind = type(module).__name__
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if kind in STACKED:
        number, stacked = STACKED[kind]
        for name, transposed in stacked.items():
            yield _Fused(name, (name,), getattr(module, number), transposed, False)
    if kind in LISTS:
        yield _Fused("weight", (path.rpartition(".")[2],), parameters["weight"].shape[0], False, False)
    transposed = getattr(module, "is_transposed", kind in TRANSPOSED)
    for name in FUSED:
        if name in parameters and parameters[name].ndim == 3:
            names = JOINED.get(name, (name,))
            interleaved = not getattr(module, "is_concatenated", True)
            yield _Fused(name, names, parameters[name].shape[0], transposed, interleaved)


def _split(path: str, module: nn.Module, fused: _Fused) -> dict[str, Part]:
    """Give each expert its linears and put the stand-ins in the place of the parameters."""
    weight = module._parameters.pop(fused.parameter)
    bias = module._parameters.pop(f"{fused.parameter}_bias", None)
    assert weight is not None
    rows = weight.shape[0] // fused.n_experts if weight.ndim == 2 else weight.shape[1]
    first, second = rows, weight.shape[-1]
    out_features, in_features = (second, first) if fused.transposed else (first, second)
    n_names, height = len(fused.names), weight.shape[0] // fused.n_experts
    parts: dict[str, Part] = {}
    for expert in range(fused.n_experts):
        for position, name in enumerate(fused.names):
            linear = nn.Linear(in_features, out_features // n_names, bias is not None, device="meta")
            target = _place(module, expert, name, linear.requires_grad_(False))
            outputs = (
                slice(position, None, n_names)
                if fused.interleaved
                else slice(position * linear.out_features, (position + 1) * linear.out_features)
            )
            span = (expert * height, (expert + 1) * height)
            whole = f"{path}.{fused.parameter}"
            parts[f"{path}.{target}.weight"] = Part(whole, span, expert, position, outputs, fused.transposed)
            if bias is not None:
                span = (expert, expert + 1)
                parts[f"{path}.{target}.bias"] = Part(f"{whole}_bias", span, expert, position, outputs)
    shape = torch.Size((fused.n_experts, first, second))
    setattr(module, fused.parameter, FusedWeight(module, fused.names, shape, fused.transposed, fused.interleaved))
    if bias is not None:
        setattr(module, f"{fused.parameter}_bias", FusedBias())
    return parts


def _place(module: nn.Module, expert: int, name: str, linear: nn.Linear) -> str:
    """Put a linear into its expert; return its path inside `module`."""
    if str(expert) not in module._modules:
        module.add_module(str(expert), Expert())
    module.get_submodule(str(expert)).add_module(name, linear)
    return f"{expert}.{name}"
