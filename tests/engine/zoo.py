"""One tiny model of any architecture, taken through the whole pipeline, and what is true of it afterwards.

`write_model` saves a seeded random checkpoint through transformers, so that the tensors have the names that real
checkpoints have. No weight is one that a wrong fold could hide behind: norms are not ones, biases are not zeros.
`examine` quantizes it and measures four things against transformers' own forward pass:

    stream     the blocks run one after the other on captured arguments      = the original model
    folded     the same with every fold applied with a random scale          = the original model, or as near to it as
               the original is when its weights move by one float32 number (a recurrence can amplify that)
               or, in a model stored in 16 bits, the biases of norms as far as their rounding may move them
    reloaded   the written checkpoint, loaded again and run by transformers  = what the pipeline had in memory
    reference  the same through the integer kernels' reference               = the same
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from zoo_configs import PREFIXES, VOCABULARY, tiny_config

from awq_engine.architecture import value_dim
from awq_engine.capture import BlockInputs, capture_inputs, finish_forward
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Preset, RunConfig
from awq_engine.errors import first_line
from awq_engine.events import FoldTested, LinearQuantized, Verified, Warned
from awq_engine.folds import (
    BIAS_LOSS,
    Fold,
    FoldKind,
    InputGroup,
    divide_producer,
    find_fold,
    input_groups,
    scale_consumers,
)
from awq_engine.journal import Journal
from awq_engine.outer import TORCH_DTYPES
from awq_engine.pipeline import quantize_blocks
from awq_engine.plan import Plan, make_plan
from awq_engine.publishing import write_output
from awq_engine.runs import create_run
from awq_engine.runtime import load_dequantized, load_model
from awq_engine.skeleton import Skeleton, build_skeleton

GROUP_SIZE = 32
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit; float32 noise is about 1e-6."""
NUDGES = 3
"""Times that noise is measured; the largest counts."""
SEQUENCES, SEQ_LEN = 4, 48
"""More tokens than the widest linear has inputs; longer than the tiny sliding windows."""


@dataclass
class Findings:
    """What was seen of one model type."""

    model_type: str
    blocks: int = 0
    linears: dict[str, int] = field(default_factory=dict)
    """Name inside the block -> number of blocks in which it was quantized."""
    folds: dict[str, int] = field(default_factory=dict)
    """`producer -> consumers` -> number of blocks in which it was proven."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Linear -> why it stays in floats."""
    stream: float = float("nan")
    """Largest difference of a logit from the original's, relative to the largest logit."""
    folded: float = float("nan")
    noise: float = float("nan")
    """What becomes of the original's logits when its weights move as little as folds may move them."""
    reloaded: float = float("nan")
    """The same, from the pipeline's own logits."""
    reference: float = float("nan")
    quantized: float = float("nan")
    """Root mean square change of the logits by quantization, relative to theirs: what 4 bits cost."""

    @property
    def unlike(self) -> str | None:
        """The first of the four things that does not hold, in words."""
        wrong = {
            "the captured arguments do not give the original model": self.stream < TOLERANCE,
            "a fold changed the function": self.folded < max(TOLERANCE, 2 * self.noise),
            "the written checkpoint computes something else": self.reloaded < TOLERANCE,
            "the kernels compute something else": self.reference < TOLERANCE,
        }
        return next((words for words, holds in wrong.items() if not holds), None)


def write_model(model_type: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A random checkpoint of the tiny config of `model_type`."""
    torch.manual_seed(seed)
    model = checkpoint_class(model_type).from_config(tiny_config(model_type))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_disturbed(parameter))
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and buffer.is_floating_point():
                buffer.copy_(_disturbed(buffer))
    model.to(dtype).save_pretrained(folder)
    if prefix := PREFIXES.get(model_type):
        file = folder / "model.safetensors"
        save_file(
            {name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"}
        )
    return folder


def checkpoint_class(model_type: str) -> Any:
    """The auto class whose model has all parts that a checkpoint of this type holds."""
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _disturbed(values: torch.Tensor) -> torch.Tensor:
    """Values of the same kind without structure: matrices of unit gain, norms about one, biases about zero."""
    noise = torch.randn_like(values)
    if values.ndim > 1 and not _constant(values):
        return noise * min(0.5, 1.5 / values.shape[-1] ** 0.5)
    return values + 0.2 * noise


def _constant(values: torch.Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def calibration_ids() -> torch.Tensor:
    """int64 [SEQUENCES, SEQ_LEN], clear of the special tokens at both ends of the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, VOCABULARY - 60, (SEQUENCES, SEQ_LEN), generator=generator)


def examine(
    model_type: str, folder: Path, preset: Preset = Preset.FAST, dtype: torch.dtype = torch.float32, **options: Any
) -> Findings:
    """Write the tiny model of a type, quantize it and measure; `options` are fields of the run's configuration."""
    quiet()
    found = examine_folder(write_model(model_type, folder / "source", dtype), folder, preset=preset, **options)
    return replace(found, model_type=model_type)  # some types share another's config


@torch.no_grad()
def examine_folder(source: Path, folder: Path, **options: Any) -> Findings:
    """Quantize the model in `source` and measure; raises whatever the pipeline raises."""
    ids = calibration_ids()
    checkpoint = read_checkpoint(source)
    skeleton = build_skeleton(checkpoint)
    config = RunConfig(
        model=str(source), output=str(folder / "output"), samples=SEQUENCES, seq_len=SEQ_LEN, threads=1, device="cpu",
        **{"group_size": GROUP_SIZE, **options},
    )  # fmt: skip
    plan = make_plan(config, skeleton)
    found = Findings(checkpoint.model_type, len(skeleton.blocks), skipped=dict(plan.skipped))
    narrow = any(tensor.dtype in ("BF16", "F16") for tensor in checkpoint.tensors.values())
    original = load_dequantized(source).model(input_ids=ids[:1], use_cache=False).logits
    nudged = [_nudged(load_dequantized(source).model, narrow) for _ in range(NUDGES)]
    found.noise = max(difference(model(input_ids=ids[:1], use_cache=False).logits, original) for model in nudged)
    found.stream = difference(streamed(skeleton, plan, ids[:1]), original)
    found.folded = difference(streamed(skeleton, plan, ids[:1], fold=True), original)
    own = _run(config, plan, skeleton, ids, found)
    found.quantized = float((own - original).norm() / original.norm())
    reloaded = load_dequantized(folder / "output").model(input_ids=ids[:1], use_cache=False).logits
    found.reloaded = difference(reloaded, own)
    reference = load_model(folder / "output", backend="reference").model(input_ids=ids[:1], use_cache=False).logits
    found.reference = difference(reference, own)
    return found


def _nudged(model: nn.Module, narrow: bool) -> nn.Module:
    """The model with every weight one float32 number further; the biases of norms as far as narrow dtypes let them."""
    for parameter in model.parameters():
        parameter.copy_(torch.nextafter(parameter, torch.randn_like(parameter) * torch.inf))
    for module in model.modules() if narrow else ():
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if weight is not None and weight.ndim == 1 and bias is not None:
            bias.add_(weight * torch.randn_like(bias).sign(), alpha=BIAS_LOSS)
    return model


def quiet() -> None:
    """transformers warns of slow paths and unset tokens; nothing of that matters here."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected logit."""
    return float((logits - expected).abs().max() / expected.abs().max())


def _run(config: RunConfig, plan: Plan, skeleton: Skeleton, ids: torch.Tensor, found: Findings) -> torch.Tensor:
    """Quantize and write; the logits of the first sequence by the pipeline's own stream."""
    run = create_run(config)
    with Journal(run.journal_path) as emit:
        emit(plan.event)
        probe = quantize_blocks(run, plan, skeleton, ids, emit)
        write_output(run, plan, skeleton, probe, ids[:1], emit)
    events = [record.event for record in run.records()]
    assert any(isinstance(event, Verified) for event in events)
    refused = {(e.block, *e.consumers) for e in events if isinstance(e, FoldTested) and not e.accepted}
    for event in events:
        if isinstance(event, LinearQuantized):
            found.linears[event.name] = found.linears.get(event.name, 0) + 1
        if isinstance(event, Warned) and (
            stays := re.fullmatch(r"block \d+: (.*) stays in floats; (.*)", event.message)
        ):
            found.skipped |= dict.fromkeys(stays[1].split(", "), stays[2])
        if isinstance(event, FoldTested) and (event.block, *event.consumers) not in refused:
            fold = f"{event.producer} -> {', '.join(event.consumers)}"
            found.folds[fold] = found.folds.get(fold, 0) + 1
    return finish_forward(skeleton, ids[:1], probe.hidden[0])


def streamed(skeleton: Skeleton, plan: Plan, ids: torch.Tensor, fold: bool = False) -> torch.Tensor:
    """The logits of `ids` when the blocks run one by one, with or without every fold that can be found."""
    inputs = capture_inputs(skeleton, [ids])
    for index in range(len(skeleton.blocks)):
        with skeleton.loaded_block(index) as block:
            if fold:
                _fold_all(skeleton, plan, block, inputs, index)
            inputs.advance(block, index)
    return finish_forward(skeleton, ids, inputs.hidden[0])


def _fold_all(skeleton: Skeleton, plan: Plan, block: nn.Module, inputs: BlockInputs, index: int) -> None:
    """Apply every fold of a block with a random channel scale, norms rounded to the dtype they are stored in."""

    def forward() -> torch.Tensor:
        return inputs.handed_on(block, index)

    names = [linear.name for linear in plan.block_linears(index)]
    for group in input_groups(block, names, forward):
        width = value_dim(block, skeleton.model.config)
        fold = find_fold(block, _storable(skeleton, block, index, group), forward, width).fold
        if fold is not None:
            scale = torch.exp2(torch.rand(fold.width) * 4 - 2)
            dtype = _stored_dtype(skeleton, index, fold)
            scale_consumers(block, fold, divide_producer(block, fold, scale, dtype))


def _storable(skeleton: Skeleton, block: nn.Module, index: int, group: InputGroup) -> InputGroup:
    """The group with only those candidates whose parameters are stored one to one."""

    def storable(name: str) -> bool:
        parameters = block.get_submodule(name).named_parameters(prefix=name, recurse=False)
        return all(f"{skeleton.block_name(index)}.{parameter}" in skeleton.sources for parameter, _ in parameters)

    return InputGroup(group.consumers, group.in_features, tuple(name for name in group.earlier if storable(name)))


def _stored_dtype(skeleton: Skeleton, index: int, fold: Fold) -> torch.dtype | None:
    """Of the vector that is divided; matrices are not rounded here."""
    vector = "bias" if fold.kind is FoldKind.ROWS else "weight"
    source = skeleton.sources.get(f"{skeleton.block_name(index)}.{fold.producer}.{vector}")
    return TORCH_DTYPES[skeleton.checkpoint.tensors[source.key].dtype] if source else None


def why_not(error: BaseException) -> str:
    """One line for the table on what stopped a type."""
    return f"{type(error).__name__}: {first_line(error)}" if isinstance(error, Exception) else repr(error)
