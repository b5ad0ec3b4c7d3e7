"""The weights of a quantized checkpoint put into a model, with nothing guessed.

The model is built without weights. A checkpoint that has the packed tensors of a linear X is looked at as if it had
`X.weight`, which lets transformers' own renaming find the linear X belongs to; that linear is replaced, and everything
else is filled from safetensors one tensor at a time. A tensor that is missing, has another shape, or belongs to a
module that does not take it is an error with its name. Only tensors of modules that the architecture does not have at
all (heads for multi-token prediction, vision towers) are left out, with a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from awq_engine.checkpoint import Checkpoint
from awq_engine.errors import BadInputError
from awq_engine.formats.stated import Quantization
from awq_engine.skeleton import build_skeleton, missing_tensor
from awq_engine.sources import Source
from awq_engine.tensor_files import open_tensors
from awq_kernels.int_weight import IntWeight

Read = Callable[[str], torch.Tensor]
"""From a checkpoint key to its tensor, on the CPU, as stored."""
MakeLinear = Callable[[IntWeight, torch.Tensor | None], nn.Module]
"""From a weight and a bias to the module that takes the linear's place."""


@dataclass(frozen=True)
class PlacedModel:
    """A model with all its weights."""

    model: PreTrainedModel
    quantized: int
    """Number of quantized linears."""
    bits_per_weight: float
    """Of those linears as stored, scales and zero points included."""
    notes: tuple[str, ...]
    """Sentences on tensors left out."""


def place_quantized(
    checkpoint: Checkpoint, quantization: Quantization, device: torch.device, dtype: torch.dtype, make: MakeLinear
) -> PlacedModel:
    """Build the model of `checkpoint` on `device` with everything that is not quantized in `dtype`.

    `BadInputError` names the tensor when the weights and the architecture do not agree.
    """
    packed = set(quantization.linears(checkpoint))
    if not packed:
        raise BadInputError(
            f"config.json in {checkpoint.path} describes a quantization, but there is no quantized linear (no tensor "
            f"that ends in .{quantization.reader.marker}); the weights belong to another config.json."
        )
    skeleton = build_skeleton(as_floats(checkpoint, quantization), "cpu")
    model = skeleton.model
    placed = {source.key for source in skeleton.sources.values()}
    others = {key: target for key, target in skeleton.targets.items() if key not in placed}
    state = model.state_dict()
    computed = [key for key, target in others.items() if target in state]
    skeleton.dtype = dtype
    skeleton.fill(computed)
    notes = left_out(checkpoint, model, [target for target in others.values() if target not in state])
    stored = weights = 0
    with _reading(checkpoint) as read:
        homes: dict[str, str] = {}
        for name, source in skeleton.sources.items():
            if (linear := _linear_of(source.key)) in packed:
                homes[name.removesuffix(".weight")] = linear
        for name, source in skeleton.sources.items():
            if name.rpartition(".")[0] not in homes:
                _fill(model, name, source, read(source.key), device, dtype)
        for home, name in homes.items():
            parts = quantization.reader.of(checkpoint.tensors, name)
            tensors = {part: read(info.name) for part, info in parts.items()}
            weight = quantization.reader.unpack(tensors, quantization.spec_of(name), name)
            _check_fits(model.get_submodule(home), weight, name)
            stored += sum(info.nbytes for info in parts.values())
            weights += weight.q.numel()
            bias = skeleton.sources.get(f"{home}.bias")
            model.set_submodule(
                home, make(weight, None if bias is None else bias.take(read(bias.key), 1).to(device, dtype))
            )
    head = model.get_output_embeddings()
    _tie(model, checkpoint, any(model.get_submodule(home) is head for home in homes))
    nn.Module.to(model, device)
    return PlacedModel(model, len(homes), 8 * stored / weights if weights else 0.0, notes)


def _linear_of(key: str) -> str | None:
    """`X` for the key `X.weight`, None for others."""
    return key.removesuffix(".weight") if key.endswith(".weight") else None


def left_out(checkpoint: Checkpoint, model: PreTrainedModel, strangers: list[str]) -> tuple[str, ...]:
    """Notes on tensors the model has no parameter for; `BadInputError` when one belongs to a module of the model."""
    ignored = [*(model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$", r"\.masked_bias$"]
    strangers = [name for name in strangers if not any(re.search(pattern, name) for pattern in ignored)]
    modules = {name for name, _ in model.named_modules()}
    for name in strangers:
        if name.rpartition(".")[0] in modules:
            raise BadInputError(
                f"The weights in {checkpoint.path} have a tensor '{name}', which this part of a "
                f"{type(model).__name__} does not take; check config.json against the weights."
            )
    if not strangers:
        return ()
    return (f"{type(model).__name__} has no place for {len(strangers)} tensors, first {strangers[0]}; left out.",)


def as_floats(checkpoint: Checkpoint, quantization: Quantization) -> Checkpoint:
    """The checkpoint as if every quantized linear X had an `X.weight`, for transformers' key renaming."""
    tensors, reader = {}, quantization.reader
    packed = set(quantization.linears(checkpoint))
    for key, info in checkpoint.tensors.items():
        name, _, leaf = key.rpartition(".")
        if name not in packed or leaf not in reader.parts:
            tensors[key] = info
        elif leaf == reader.marker:
            tensors[f"{name}.weight"] = info
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


def _check_fits(module: nn.Module, weight: IntWeight, name: str) -> None:
    if not isinstance(module, nn.Linear):
        raise BadInputError(f"{name} is quantized, but it is a {type(module).__name__} and not a linear layer.")
    shape = list(module.weight.shape)
    if shape != [weight.out_features, weight.in_features]:
        raise BadInputError(
            f"{name} holds {weight.out_features} outputs and {weight.in_features} inputs, but config.json "
            f"describes {shape[0]} and {shape[1]}."
        )


def _fill(
    model: PreTrainedModel, name: str, source: Source, value: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> None:
    """Put one tensor, or the part that belongs there, into the parameter or buffer `name`."""
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    if source.shape != tuple(value.shape):
        raise BadInputError(
            f"{source.key} has shape {list(value.shape)}, but config.json describes {list(source.shape)}."
        )
    value = source.take(value, getattr(module, leaf).ndim)
    value = value.to(device, dtype if value.is_floating_point() else None)
    if leaf in module._buffers:
        module._buffers[leaf] = value
        return
    if not value.is_floating_point():
        raise BadInputError(f"{source.key} holds integers ({value.dtype}), but config.json describes floats.")
    if not value.isfinite().all():
        raise BadInputError(f"{source.key} holds numbers that are not finite in {dtype}; download the model again.")
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def _tie(model: PreTrainedModel, checkpoint: Checkpoint, head_is_quantized: bool) -> None:
    """Tie what the config ties, unless the head has integers of its own; then nothing may be left without a value."""
    absent = {name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta}
    if not head_is_quantized:
        model.tie_weights(missing_keys=absent)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise missing_tensor(checkpoint, name)


@contextlib.contextmanager
def _reading(checkpoint: Checkpoint) -> Iterator[Read]:
    """Opens each shard once."""
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}

        def read(key: str) -> torch.Tensor:
            file = checkpoint.tensors[key].file
            if file not in files:
                files[file] = stack.enter_context(open_tensors(file))
            return files[file].get_tensor(key)

        yield read
