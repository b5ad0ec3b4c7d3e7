"""A model folder made ready to run: a plain transformers checkpoint, or a quantized one from any tool.

transformers itself loads quantized models only with other packages installed, so that part is ours (`placement.py`).
Weights come from safetensors only, code never comes from a model folder, and nothing is fetched from the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from awq_engine.architecture import auto_class, runs_own_code
from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.errors import BadInputError, UsageError, is_panic, last_clause
from awq_engine.events import LinearQuantized
from awq_engine.fast_model import FastModel
from awq_engine.formats.stated import Quantization, read_quantization
from awq_engine.key_values import KvCache
from awq_engine.linear import QuantizedLinear
from awq_engine.memory import resident_bytes
from awq_engine.own_code import is_trusted
from awq_engine.placement import MakeLinear, left_out, place_quantized
from awq_engine.reading import Reader
from awq_engine.skeleton import load_config, missing_tensor
from awq_engine.stacked_experts import stack_experts
from awq_engine.tuned import measured_launches
from awq_kernels import reference
from awq_kernels.dispatch import BackendStatus, choose, prepare
from awq_kernels.int_weight import IntWeight

FLOAT_BACKEND = "torch"
"""What computes the linears of a model that is not quantized."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to run, and what to tell a person about it."""

    path: Path
    model: PreTrainedModel
    backend: str
    """`triton`, `cpu` or `reference` for a quantized model, `torch` for one in floats."""
    reason: str
    """Why that backend, as a clause."""
    device: torch.device
    dtype: torch.dtype
    """Of everything that is not quantized, and of the activations."""
    context_length: int | None
    """Most tokens the model was made for, prompt and answer together; None when it does not say."""
    quantized: int
    """Number of quantized linears."""
    bits_per_weight: float
    """As stored: of the quantized linears with their scales and zero points, else of all tensors."""
    notes: tuple[str, ...] = ()
    """Sentences on what is not as asked or not as usual: linears the backend could not take, tensors left out."""

    fast: FastModel | None = None
    """What our own decoder runs; None where transformers' forward pass does (`decoding.prepare_decoding` decides)."""
    graphs: bool = False
    """Whether our decoder runs a step as one CUDA graph."""
    cache: Literal["pieces", "whole", "none"] = "pieces"
    """How much of transformers' own cache can be used (`transformers_decoder.Cache`)."""
    decoding: str = "transformers' forward pass"
    """Which decoder, and why, as a clause."""
    kept: list[Reader] = field(default_factory=list, init=False, repr=False, compare=False)
    """What was read last, unless it is lent (`decoding.lent_reader`)."""

    @property
    def in_float32(self) -> bool:
        """Whether activations are rounded to nothing shorter on the way."""
        return self.dtype == torch.float32 and self.backend in (FLOAT_BACKEND, "reference")

    @property
    def kv_cache(self) -> KvCache:
        """What keys and values are kept in."""
        return "float" if self.fast is None else self.fast.key_values.kept

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read when first asked for; `BadInputError` when the folder has none that can be used."""
        return load_tokenizer(self.path)


def load_model(
    path: Path | str, *, backend: str = "auto", device: str = "auto", dtype: torch.dtype | None = None
) -> LoadedModel:
    """Load the model in the folder `path`.

    Args:
        backend: `auto`, `triton`, `cpu` or `reference`; a model in floats takes no notice of it.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, ...
        dtype: of what is not quantized; None for float32 on the CPU and with the reference backend, otherwise the
            checkpoint's own.
    Raises:
        BadInputError: the folder cannot be used; names the file or tensor.
        UsageError: the device or the backend is not there.
    """
    checkpoint, quantization = _read(path)
    place = pick_device("cpu" if (device, backend) == ("auto", "cpu") else device)
    status = pick_backend(backend, place)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" or status.name == "reference" else _stored_dtype(checkpoint)
    if quantization is None:
        return _load_floats(checkpoint, place, dtype)

    launches = measured_launches(status.name, place)

    def make(weight: IntWeight, bias: torch.Tensor | None) -> nn.Module:
        return QuantizedLinear(prepare(weight, status.name, place, launches), bias)

    return _load_quantized(checkpoint, quantization, place, dtype, make, status)


def load_dequantized(path: Path | str, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a checkpoint with every quantized linear as an `nn.Linear` of its dequantized weights, to check by.

    In float32 the weights are exactly `(q - zero_point) * scale`. Needs the memory of the model in `dtype`. A model in
    floats is loaded as `load_model` does. Raises as `load_model`.
    """
    checkpoint, quantization = _read(path)
    place = pick_device(device)
    if quantization is None:
        return _load_floats(checkpoint, place, dtype)

    def make(weight: IntWeight, bias: torch.Tensor | None) -> nn.Module:
        linear = nn.Linear(weight.in_features, weight.out_features, bias is not None, device="meta")
        linear.weight = nn.Parameter(reference.dequantize(weight.to(place), dtype), requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # pyright: ignore
        return linear

    status = BackendStatus(FLOAT_BACKEND, True, f"the integers were dequantized to {str(dtype).removeprefix('torch.')}")
    return _load_quantized(checkpoint, quantization, place, dtype, make, status)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; `BadInputError` when there is none that can be used without its own code."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=is_trusted(path))
        tokenizer.decode(tokenizer("A cat.", verbose=False)["input_ids"])  # some damage shows only when it is used
        return tokenizer
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BadInputError(f"{path} has no tokenizer that can be used: {last_clause(error)}") from error


def pick_device(device: str) -> torch.device:
    """`auto` to a GPU when there is one, anything else checked; `UsageError` when it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is no device; give auto, cpu, cuda or cuda:N.") from error
    present = 1 if found.type == "cpu" else 0
    if accelerator is not None and found.type == accelerator.type:
        present = torch.accelerator.device_count()
    if (found.index or 0) >= present:
        raise UsageError(f"The device {device} is not there: torch sees {present} of that kind; use --device cpu.")
    return found


def pick_backend(backend: str, device: torch.device) -> BackendStatus:
    try:
        return choose(backend, device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read(path: Path | str) -> tuple[Checkpoint, Quantization | None]:
    checkpoint = read_checkpoint(Path(path))
    return checkpoint, read_quantization(checkpoint)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    name = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float16"
    found = getattr(torch, str(name), None)
    return found if found in (torch.float16, torch.bfloat16, torch.float32) else torch.float16


def _load_floats(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """transformers' own loader, held to what is said above about missing and extra tensors."""
    config = load_config(checkpoint)
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = auto_class(config).from_pretrained(
            checkpoint.path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=runs_own_code(config),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise BadInputError(f"The model in {checkpoint.path} cannot be loaded: {last_clause(error)}") from error
    model, info = loaded
    if absent := sorted(info["missing_keys"]):
        raise missing_tensor(checkpoint, absent[0])
    notes = left_out(checkpoint, model, sorted(info["unexpected_keys"]))
    model.eval().requires_grad_(False).to(device)
    bits = 8 * checkpoint.nbytes / checkpoint.parameters
    reason = "the model is not quantized"
    context = _context_length(model)
    return LoadedModel(checkpoint.path, model, FLOAT_BACKEND, reason, device, dtype, context, 0, bits, notes)


def _load_quantized(
    checkpoint: Checkpoint,
    quantization: Quantization,
    device: torch.device,
    dtype: torch.dtype,
    make: MakeLinear,
    status: BackendStatus,
) -> LoadedModel:
    placed = place_quantized(checkpoint, quantization, device, dtype, make)
    model = placed.model
    if status.name == "triton":
        stack_experts(model)
    if (settings := checkpoint.path / "generation_config.json").is_file():
        model.generation_config = _generation_config(settings)
    return LoadedModel(
        path=checkpoint.path,
        model=model,
        backend=status.name,
        reason=status.reason,
        device=device,
        dtype=dtype,
        context_length=_context_length(model),
        quantized=placed.quantized,
        bits_per_weight=placed.bits_per_weight,
        notes=placed.notes + _fallbacks(model),
    )


def _generation_config(file: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(file.parent, local_files_only=True)
    except Exception as error:
        raise BadInputError(f"{file} cannot be used: {last_clause(error)}") from error


def _fallbacks(model: PreTrainedModel) -> tuple[str, ...]:
    """A sentence for each quantized linear that its backend could not take."""
    linears = [(name, module.prepared) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    return tuple(f"{name} is computed by the reference: {linear.note}." for name, linear in linears if linear.note)


def _context_length(model: PreTrainedModel) -> int | None:
    config: Any = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            return found
    return None


def with_memory(event: LinearQuantized) -> LinearQuantized:
    """With the bytes of the host and of all GPUs that this process holds at this moment."""
    device_bytes = sum(map(torch.cuda.memory_reserved, range(torch.cuda.device_count())))
    return replace(event, host_bytes=resident_bytes(), device_bytes=device_bytes)


def device_total_bytes(device: torch.device) -> int:
    """Memory of a GPU; 0 for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def peak_device_bytes() -> int:
    """Largest CUDA allocation of this process so far."""
    return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())), default=0)
