"""The model without its weights, and the way to give weights to one part of it at a time.

The module tree is built with every parameter on the meta device (buffers, such as rotary frequencies, are real). Parts
are filled from safetensors through transformers' own key renaming and weight conversion, used, and emptied again: at
any moment only one decoder block, or the embeddings and the head, occupy memory.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightTransform, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from awq_engine.architecture import build_empty, find_blocks, towers
from awq_engine.checkpoint import Checkpoint, TensorInfo
from awq_engine.errors import BadInputError, as_known_error, last_clause
from awq_engine.linearize import linearize
from awq_engine.outer import TableOnDemand, has_rows, packed_pieces, stored_pieces, streamed_head
from awq_engine.own_code import is_trusted, needs_own_code
from awq_engine.sources import Source, find_sources
from awq_engine.tensor_files import open_tensors
from awq_kernels.int_weight import IntWeight

MOST_PARAMETERS = 100
"""Of a model's modules, registered for every tensor stored; modules that are thrown away again count too."""
MOST_LAYERS = 1 << 16


@dataclass
class Skeleton:
    """A causal language model whose parameters are on the meta device until they are asked for."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    blocks_name: str
    """Path of the module list of decoder blocks, e.g. `model.layers`."""
    targets: dict[str, str]
    """Checkpoint key -> parameter it fills, or the first of them."""
    sources: dict[str, Source]
    """Parameter -> where it lies in the checkpoint; without those that transformers computes from what is stored, and
    those that blocks share: what one block would do to them, the others would not expect."""
    computed: frozenset[str]
    """Parameters that transformers splits off stored tensors."""
    rebuilt: tuple[str, ...]
    """Parameters of linears that `linearize` put in the place of other modules."""
    shared: dict[str, str]
    """Parameter of a block -> the one of another block whose value it shares."""
    dtype: torch.dtype
    device: torch.device
    unpack: Callable[[str], torch.Tensor | None] = lambda key: None
    """Checkpoint key -> its weight in floats where the checkpoint holds integers instead; None where it does not."""
    read_head: Callable[[], IntWeight] | None = None
    """The output head's integers, where they stand in for its weight."""
    output_tail: tuple[Any, ...] | None = ()
    """What block 0 returns after the hidden states, None when it returns the bare tensor; empty until it was seen."""

    @cached_property
    def conversions(self) -> list[WeightTransform]:
        """How transformers names and shapes what it reads from such checkpoints."""
        return get_model_conversion_mapping(self.model)

    @cached_property
    def rebuilt_by_key(self) -> dict[str, list[str]]:
        """Checkpoint key -> the rebuilt parameters that it fills."""
        names: dict[str, list[str]] = {}
        for name in self.rebuilt:
            if name in self.sources:
                names.setdefault(self.sources[name].key, []).append(name)
        return names

    def written_name(self, parameter: str) -> str:
        """The name a parameter has in checkpoints."""
        return self.sources[parameter].name if parameter in self.sources else parameter

    def split_keys(self, linears: Iterable[str]) -> dict[str, list[str]]:
        """Stored tensors that these linears (paths) share with others -> names of all that is in them."""
        parameters = [f"{linear}.{leaf}" for linear in linears for leaf in ("weight", "bias")]
        sources = [self.sources[name] for name in parameters if name in self.sources]
        keys = dict.fromkeys(source.key for source in sources if source.is_shared)
        return {key: [self.sources[name].name for name in self.rebuilt_by_key[key]] for key in keys}

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.blocks_name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def block_name(self, index: int) -> str:
        return f"{self.blocks_name}.{index}"

    def block_keys(self, index: int) -> list[str]:
        """Checkpoint keys of one block."""
        prefix = self.block_name(index) + "."
        return [key for key, target in self.targets.items() if target.startswith(prefix)]

    def outer_keys(self) -> list[str]:
        """Checkpoint keys of what text needs beside the blocks: embeddings, final norm, head."""
        return [key for key, target in self.targets.items() if self._is_outer(target)]

    def _is_outer(self, parameter: str) -> bool:
        return not parameter.startswith((f"{self.blocks_name}.", *(f"{tower}." for tower in self.towers)))

    @cached_property
    def towers(self) -> list[str]:
        """Paths of the parts that text does not run through; they are never loaded."""
        return towers(self.model)

    def _stand_in_for_towers(self) -> None:
        """Give towers parameters on the device that hold nothing: a model says that it is where its first one is."""
        for tower in self.towers:
            for module in self.model.get_submodule(tower).modules():
                for name, old in module._parameters.items():
                    if old is not None and old.is_meta:
                        nothing = torch.zeros((), dtype=self.dtype, device=self.device).expand(old.shape)
                        module._parameters[name] = nn.Parameter(nothing, requires_grad=False)

    def read_neighbours(self, linears: Iterable[str], done: Collection[str]) -> dict[str, torch.Tensor]:
        """Written name -> value, as stored, of what shares a stored tensor with `linears` and is not in `done`."""
        names = [name for key in self.split_keys(linears) for name in self.rebuilt_by_key[key]]
        sources = {name: self.sources[name] for name in names if self.sources[name].name not in done}
        with contextlib.ExitStack() as stack:
            stored = self._slices(stack, {source.key for source in sources.values()})
            return {
                source.name: source.take(stored[source.key], self.model.get_parameter(name).ndim).contiguous()
                for name, source in sources.items()
            }

    @contextlib.contextmanager
    def loaded_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block with its weights, emptied again at the end."""
        block, prefix = self.blocks[index], self.block_name(index) + "."
        empty = [(module, dict(module._parameters)) for module in block.modules()]
        lent = {name: owner for name, owner in self.shared.items() if name.startswith(prefix)}
        try:
            owners = set(lent.values())
            self.fill([*self.block_keys(index), *(key for key, target in self.targets.items() if target in owners)])
            for name, owner in lent.items():
                module, leaf = self._place(name)
                module._parameters[leaf] = self.model.get_parameter(owner)
            _refuse_missing(block, self.block_name(index), self.checkpoint)
            yield block
        finally:
            for module, parameters in empty:  # an error may have left some without their shape
                module._parameters.update(parameters)
            for owner in lent.values():
                _empty_parameter(*self._place(owner))

    def _place(self, parameter: str) -> tuple[nn.Module, str]:
        """The module that has a parameter, and its name there."""
        module, _, leaf = parameter.rpartition(".")
        return self.model.get_submodule(module), leaf

    @contextlib.contextmanager
    def loaded_outer(self, head: bool = False) -> Iterator[PreTrainedModel]:
        """The model with what text needs beside its blocks; embeddings hold just the rows in use.

        Args:
            head: whether the output embeddings will be used.
        """
        outer = [name for name, _ in self.model.named_parameters() if self._is_outer(name)]
        output = self.model.get_output_embeddings()
        streams_head = type(output) is nn.Linear
        streamed = self._stored_matrices(self._vocabularies()) if streams_head or not head else {}
        if streams_head:
            streamed |= self._stored_matrices([output])
        packed = set() if self.read_head is None else {f"{self.path_of(output)}.weight"}
        keys = {self.sources[name].key for name in {*streamed, *packed}}
        try:
            self.fill([key for key in self.outer_keys() if key not in keys])
            with contextlib.ExitStack() as stack:
                for module, info in streamed.values():
                    if isinstance(module, nn.Embedding):
                        module._parameters["weight"] = TableOnDemand.of(info, self.device)  # type: ignore[assignment]
                self.model.tie_weights()
                self._refuse_missing_outer(set(outer) - set(streamed) - packed)
                self._stand_in_for_towers()
                weights = {id(module.weight): info for module, info in streamed.values()}
                if isinstance(output, nn.Linear) and (read := self.read_head):
                    stack.enter_context(streamed_head(output, lambda: packed_pieces(read())))
                elif isinstance(output, nn.Linear) and (info := weights.get(id(output.weight))):
                    stack.enter_context(streamed_head(output, lambda: stored_pieces(info)))
                yield self.model
        finally:
            for name in outer:
                _empty_parameter(*self._place(name))

    def stored_head(self) -> tuple[str, TensorInfo] | None:
        """Path and stored weight of the output head; None unless it is a plain linear with a weight of its own."""
        head = self.model.get_output_embeddings()
        ties: dict[str, str] = getattr(self.model, "all_tied_weights_keys", None) or {}
        found = self._stored_matrices([head]) if type(head) is nn.Linear else {}
        own = {name: info for name, (_, info) in found.items() if name not in {*ties, *ties.values()}}
        return next(((name.removesuffix(".weight"), info) for name, info in own.items()), None)

    def path_of(self, module: nn.Module | None) -> str:
        """Where in the model `module` is; "" for the model itself and for what is none of its parts."""
        return next((path for path, part in self.model.named_modules() if part is module), "")

    def _vocabularies(self) -> list[nn.Module]:
        """Embeddings that look up what they are called with; classes of their own may shift it first (positions)."""
        kinds = (nn.Embedding, type(self.model.get_input_embeddings()))
        return [m for m in self.model.modules() if isinstance(m, nn.Embedding) and type(m) in kinds]

    def _stored_matrices(self, modules: list[nn.Module]) -> dict[str, tuple[Any, TensorInfo]]:
        """Parameter -> (module, tensor) of those outer `modules` whose weight is stored as it is, in floats."""
        found = {}
        for path, module in self.model.named_modules():
            name = f"{path}.weight"
            if module not in modules or not self._is_outer(name):
                continue
            source = self.sources.get(name)
            info = self.checkpoint.tensors[source.key] if source and source.part is None else None
            if info is not None and has_rows(info) and info.shape == tuple(module.get_parameter("weight").shape):
                found[name] = module, info
        return found

    def _refuse_missing_outer(self, names: set[str]) -> None:
        parameters = dict(self.model.named_parameters())
        if missing := sorted(name for name in names if name in parameters and parameters[name].is_meta):
            raise missing_tensor(self.checkpoint, missing[0])

    def fill(self, keys: Iterable[str]) -> None:
        """Read these checkpoint keys into their parameters, as `dtype` on `device`."""
        keys = list(keys)
        load = LoadStateDictConfig(
            weight_mapping=self.conversions, device_map={"": str(self.device)}, dtype=self.dtype  # pyright: ignore
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            slices = self._slices(stack, keys)
            for key in [key for key in keys if key in self.rebuilt_by_key]:
                self._fill_rebuilt(key, slices.pop(key))
            transformers_logging.disable_progress_bar()
            try:
                convert_and_load_state_dict_in_model(self.model, slices, load)
            except RuntimeError as error:
                if as_known_error(error):  # too little memory
                    raise
                raise BadInputError(
                    f"The weights in {self.checkpoint.path} do not fit its config.json: {error}"
                ) from error

    def _fill_rebuilt(self, key: str, stored: Any) -> None:
        """Read one checkpoint key into the parameters of rebuilt linears."""
        for name in self.rebuilt_by_key[key]:
            module, leaf = self._place(name)
            ndim = module._parameters[leaf].ndim  # pyright: ignore[reportOptionalMemberAccess]
            value = stored if isinstance(stored, torch.Tensor) else self.sources[name].take(stored, ndim)
            value = value.to(self.device, self.dtype).contiguous()
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def _slices(self, stack: contextlib.ExitStack, keys: Iterable[str]) -> dict[str, Any]:
        files: dict[Path, Any] = {}
        slices: dict[str, Any] = {}
        for key in keys:
            if (weight := self.unpack(key)) is not None:
                slices[key] = weight
                continue
            file = self.checkpoint.tensors[key].file
            if file not in files:
                files[file] = stack.enter_context(open_tensors(file))
            slices[key] = files[file].get_slice(key)
        return slices


def build_skeleton(checkpoint: Checkpoint, device: str = "cpu") -> Skeleton:
    """Build the empty model of a checkpoint; its blocks are the largest list of alike modules that hold linears.

    Raises `BadInputError` when transformers does not know the architecture, or no such list exists.
    """
    config = load_config(checkpoint)
    with _parameters_on_meta(MOST_PARAMETERS * len(checkpoint.tensors)):
        try:
            model = build_empty(config)
        except Exception as error:
            if known := as_known_error(error):
                raise known from error
            why = last_clause(error)
            raise BadInputError(f"transformers cannot build '{checkpoint.model_type}' as a causal LM: {why}") from error
    model.eval().requires_grad_(False)
    original = model.state_dict()
    parts = linearize(model)
    found = find_sources(model, original, parts, checkpoint)
    blocks_name = find_blocks(model)
    shared = _shared_by_blocks(model, blocks_name)
    sources = {n: s for n, s in found.parameters.items() if n not in shared and n not in shared.values()}
    return Skeleton(
        model, checkpoint, blocks_name, found.targets, sources, found.computed, tuple(parts), shared, torch.float32,
        torch.device(device),
    )  # fmt: skip


def _shared_by_blocks(model: PreTrainedModel, blocks_name: str) -> dict[str, str]:
    """Parameters of blocks that are tied to those of other blocks."""
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    inside = f"{blocks_name}."
    return {name: owner for name, owner in ties.items() if name.startswith(inside) and owner.startswith(inside)}


def load_config(checkpoint: Checkpoint) -> Any:
    """The transformers config of a checkpoint; its own code is run where there is no other and it was allowed."""
    _refuse_endless(checkpoint.config, checkpoint.path)
    own = "auto_map" in checkpoint.config and checkpoint.model_type not in _known_model_types()
    if own and not is_trusted(checkpoint.path):
        raise needs_own_code(checkpoint.path, checkpoint.model_type)
    try:
        return AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=own)
    except Exception as error:
        raise BadInputError(f"The config.json in {checkpoint.path} cannot be used: {last_clause(error)}") from error


def _refuse_endless(config: dict[str, Any], folder: Path) -> None:
    """Numbers of layers of which transformers would make lists that fill the memory, while it reads the config."""
    for key, value in config.items():
        if isinstance(value, dict):
            _refuse_endless(value, folder)
        elif "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise BadInputError(f"config.json in {folder} says that {key} is {str(value)[:20]}; no model has so many.")


def _known_model_types() -> set[str]:
    from transformers import CONFIG_MAPPING

    return set(CONFIG_MAPPING.keys())


def _refuse_missing(module: nn.Module, prefix: str, checkpoint: Checkpoint) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise missing_tensor(checkpoint, f"{prefix}.{name}")


def missing_tensor(checkpoint: Checkpoint, name: str) -> BadInputError:
    """The error for a tensor that is not there."""
    return BadInputError(
        f"The weights in {checkpoint.path} lack the tensor '{name}' that the architecture needs; download it again."
    )


def _empty_parameter(module: nn.Module, name: str) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None and not parameter.is_meta:
        module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


@contextlib.contextmanager
def _parameters_on_meta(most: int) -> Iterator[None]:
    """Inside, every new parameter lands on the meta device while buffers stay real.

    After `most` of them no more are made: a config that says a billion layers would fill the memory with modules.
    """
    register, made = nn.Module.register_parameter, iter(range(most))

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if next(made, None) is None:
            raise BadInputError(f"config.json describes more than {most} parameters, far more than there are tensors.")
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def block_index(blocks_name: str, name: str) -> int | None:
    """The block that a parameter or module name lies in, or None."""
    match = re.match(re.escape(blocks_name) + r"\.(\d+)\.", name)
    return int(match.group(1)) if match else None
