"""Where each parameter of the linearized model lies in the checkpoint, and under which name it is written back.

transformers says which of its own parameters a checkpoint key fills; `linearize` says which part of such a parameter
each linear is. Experts stored one by one keep their keys. Experts stored fused are written one by one, as vLLM reads
quantized experts: `<experts module>.<number>.<linear>`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from awq_engine.checkpoint import Checkpoint
from awq_engine.errors import BadInputError
from awq_engine.linearize import Part

SPELLINGS = {
    kind: {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for kind in ("granitemoe", "granitemoeshared", "granitemoehybrid")
}
"""By model type: what vLLM calls experts' linears where the checkpoint fuses them and vLLM does not use our names."""


@dataclass(frozen=True)
class Source:
    """The value of one parameter in the checkpoint."""

    key: str
    name: str
    """Under which the parameter is written."""
    shape: tuple[int, ...]
    """The stored tensor must have."""
    part: Part | None = None
    """None when the tensor is the parameter."""

    @property
    def is_shared(self) -> bool:
        """Whether the tensor holds other parameters too, so that it gives way to several when one changes."""
        return self.key != self.name

    def take(self, stored: Any, ndim: int) -> torch.Tensor:
        """The parameter, of `ndim` dimensions, out of the stored tensor or safetensors slice."""
        return stored[...] if self.part is None else self.part.take(stored, ndim)

    def restore(self, value: torch.Tensor) -> torch.Tensor:
        """A new value of the parameter as it is written under `name`."""
        return value.T if self.part is not None and self.part.transposed and not self.is_shared else value


@dataclass(frozen=True)
class Sources:
    """The keys of a checkpoint and the parameters of a model, matched."""

    targets: dict[str, str]
    """Checkpoint key -> the parameter it fills, or the first of them."""
    parameters: dict[str, Source]
    """Parameter -> its source, unless transformers computes it from what is stored."""
    computed: frozenset[str]
    """Parameters that transformers takes, as one of several, out of a stored tensor."""


def find_sources(
    model: PreTrainedModel, original: Mapping[str, torch.Tensor], parts: Mapping[str, Part], checkpoint: Checkpoint
) -> Sources:
    """Match the keys of `checkpoint` with the parameters of `model`.

    Args:
        model: linearized.
        original: its state dict before that.
        parts: what `linearize` returned.
    Raises:
        BadInputError: experts are stored in a way that cannot be taken apart.
    """
    converters = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightConverter)]
    state = model.state_dict()
    members = _members(parts)
    targets: dict[str, str] = {}
    parameters: dict[str, Source] = {}
    computed: set[str] = set()
    for target, found in _by_target(model, {**original, **state}, checkpoint).items():
        key, pattern = found[0]
        if target not in members:
            target = _canonical(target, checkpoint.model_type) if target not in state else target
            targets |= {key: target for key, _ in found}
            computed |= _split_off(target, pattern, converters)
            if pattern is None and target in state:
                key = found[-1][0]
                parameters[target] = Source(key, key, tuple(state[target].shape))
            continue
        converter = next((c for c in converters if pattern in c.source_patterns), None)
        kinds = {type(operation) for operation in converter.operations} if converter else set()
        if kinds <= {Transpose, Interleave}:
            stored, whole = checkpoint.tensors[key].shape, tuple(original[target].shape)
            filled = {}
            for name in members[target].values():
                part, shape = _rearranged(parts[name], converter, stored, whole)
                filled[name] = Source(key, _written_name(key, name, part, checkpoint.model_type), shape, part)
        elif converter is not None and kinds <= {MergeModulelist, Concatenate}:
            filled = _taken_apart(found, converter, members[target], state, parts, checkpoint.model_type)
        else:
            raise BadInputError(f"The experts in {key} are stored in a way that cannot be taken apart yet.")
        parameters |= filled
        for name, source in filled.items():
            targets.setdefault(source.key, name)
    return Sources(targets, parameters, frozenset(computed))


def _split_off(target: str, pattern: str | None, converters: list[WeightConverter]) -> set[str]:
    """What a tensor that fills `target` fills beside it, when the converter with `pattern` splits it."""
    names = next((c.target_patterns for c in converters if pattern in c.source_patterns), [""])
    plain = [name.replace("\\", "") for name in names]
    return {target.replace(plain[0], name) for name in plain[1:]}


def _by_target(
    model: PreTrainedModel, state: dict[str, torch.Tensor], checkpoint: Checkpoint
) -> dict[str, list[tuple[str, str | None]]]:
    """Parameter -> (key, pattern of the converter that takes it or None) of all that goes into it."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    found: dict[str, list[tuple[str, str | None]]] = {}
    for key in checkpoint.tensors:
        target, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        found.setdefault(target, []).append((key, pattern))
    return found


def _members(parts: Mapping[str, Part]) -> dict[str, dict[tuple[int, int], str]]:
    """Original parameter -> (expert, position in it) -> the parameter made of that part."""
    members: dict[str, dict[tuple[int, int], str]] = {}
    for name, part in parts.items():
        members.setdefault(part.whole, {})[part.expert, part.position] = name
    return members


def _taken_apart(
    found: list[tuple[str, str | None]],
    converter: WeightConverter,
    members: Mapping[tuple[int, int], str],
    state: Mapping[str, torch.Tensor],
    parts: Mapping[str, Part],
    model_type: str,
) -> dict[str, Source]:
    """Sources of linears whose stored tensors `converter` puts together: each its own, or one for all experts."""
    kinds = {type(operation) for operation in converter.operations}
    filled: dict[str, Source] = {}
    for key, pattern in found:
        assert pattern is not None
        position = converter.source_patterns.index(pattern)
        expert = int(re.findall(r"\.(\d+)(?=\.)", key)[-1])
        for (number, place), name in members.items():
            shape = tuple(state[name].shape)
            if place == position and MergeModulelist not in kinds:
                part = dataclasses.replace(parts[name], outputs=None)
                written = _written_name(key, name, part, model_type)
                filled[name] = Source(key, written, (len({n for n, _ in members}), *shape), part)
            elif (number, place) == (expert, position):
                filled[name] = Source(key, key, shape)
    return filled


def _rearranged(
    part: Part, converter: WeightConverter | None, stored: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[Part, tuple[int, ...]]:
    """`part` of a tensor that becomes the `whole` parameter when it is loaded, and the shape that tensor must have."""
    for operation in converter.operations if converter else ():
        if isinstance(operation, Interleave) and part.outputs is not None:
            part = dataclasses.replace(part, outputs=slice(part.position, None, 2))
        elif isinstance(operation, Transpose) and not (operation.check_dims and stored == whole):
            part = dataclasses.replace(part, transposed=not part.transposed)
            whole = (*whole[:-2], whole[-1], whole[-2])
    return part, whole


def _written_name(key: str, name: str, part: Part, model_type: str) -> str:
    """The name of a part of a fused tensor: the parameter's inside its block, after the checkpoint's for the block."""
    if part.rows is None:
        return key
    inside = name.removeprefix(_block_prefix(name))
    head, linear, leaf = inside.rsplit(".", 2)
    linear = SPELLINGS.get(model_type, {}).get(linear, linear)
    return f"{_block_prefix(key)}{head}.{linear}.{leaf}"


def _block_prefix(name: str) -> str:
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else ""


def _canonical(name: str, model_type: str) -> str:
    """The parameter that vLLM's spelling of an expert's linear means."""
    for ours, theirs in SPELLINGS.get(model_type, {}).items():
        name = re.sub(rf"(\.\d+)\.{theirs}\.(\w+)$", rf"\1.{ours}.\2", name)
    return name
