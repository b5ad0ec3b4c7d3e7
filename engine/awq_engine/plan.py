"""The preflight: what will be quantized, what will not and why, and everything that would go wrong later.

All problems are found from `config.json`, the safetensors headers and the empty module tree, before a weight is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from awq_engine.architecture import head_dim, outside_parts
from awq_engine.checkpoint import DTYPE_BYTES, Checkpoint, read_checkpoint
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError
from awq_engine.estimate import TIED_HEAD, Estimate, estimate, group_problem, misfits, picks_experts
from awq_engine.events import PlanReady
from awq_engine.formats.limits import Format, misfit, packed_bytes
from awq_engine.fused import disagreement
from awq_engine.linearize import is_plain
from awq_engine.memory import total_bytes
from awq_engine.models import resolve_model
from awq_engine.output import check_run
from awq_engine.overrides import deciding_override, pattern_problem
from awq_engine.runtime import device_total_bytes
from awq_engine.skeleton import Skeleton, build_skeleton
from awq_engine.sources import Source
from awq_engine.spec import QuantSpec, spec_of
from awq_engine.vllm_rules import Shape, describe_refusals, marlin_refusals

FLOAT_DTYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class LinearPlan:
    """One linear to be quantized."""

    block: int
    name: str
    """Inside the block."""
    path: str
    """In the model."""
    key: str
    """In the output, without `.weight`; the source's own name where that has one."""
    out_features: int
    in_features: int
    spec: QuantSpec
    stored_bytes: int
    """Of its weight, as it is in the source."""


@dataclass
class LeftOut:
    """What overrides leave as it is."""

    n_bytes: int = 0
    weights: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    config: RunConfig
    linears: tuple[LinearPlan, ...]
    skipped: tuple[tuple[str, str], ...]
    """(name, reason) of linears that are copied as they are."""
    left_out: LeftOut
    event: PlanReady
    forecast: Estimate

    @cached_property
    def _by_block(self) -> dict[int, list[LinearPlan]]:
        found: dict[int, list[LinearPlan]] = {}
        for linear in self.linears:
            found.setdefault(linear.block, []).append(linear)
        return found

    def block_linears(self, block: int) -> list[LinearPlan]:
        return self._by_block.get(block, [])

    @property
    def head(self) -> LinearPlan | None:
        """The output head where it is quantized: the only linear of what comes after the last block."""
        return next(iter(self.block_linears(self.event.n_blocks)), None)

    @property
    def n_units(self) -> int:
        """Blocks, and the head where it is quantized."""
        return self.event.n_blocks + (self.head is not None)

    def written_linears(self, block: int, tensors: Iterable[str]) -> list[LinearPlan]:
        """Those of a block's linears that were quantized, given the names of its stored tensors."""
        packed = {owner for owner, _, leaf in (t.rpartition(".") for t in tensors) if leaf not in ("weight", "bias")}
        return [linear for linear in self.block_linears(block) if linear.key in packed]


def make_plan(config: RunConfig, skeleton: Skeleton) -> Plan:
    """Decide what to quantize; raises `BadInputError` naming what cannot work and what would."""
    checkpoint = skeleton.checkpoint
    refuse_quantized(checkpoint)
    refuse_mismatch(skeleton)
    linears, skipped, left_out = _choose_linears(config, skeleton)
    linears += _choose_head(config, skeleton, skipped) if config.lm_head else []
    linears, skipped = _leave_misfits(linears, skipped)
    _refuse_override_of_head(config, skeleton)
    if problem := pattern_problem(config.overrides, [x.key for x in linears] + [key for key, _ in skipped]):
        raise BadInputError(problem)
    if problem := group_problem([(f"{x.key}.weight", x.in_features, x.spec) for x in linears]):
        raise BadInputError(problem)
    if not linears:
        raise BadInputError(
            f"Nothing in {checkpoint.path} can be quantized: {skipped[0][1] if skipped else 'no linears'}."
        )
    forecast = estimate(checkpoint, config)
    replaced = sum(x.stored_bytes for x in linears)
    weights = sum(x.out_features * x.in_features for x in linears)
    packed = sum(packed_bytes(config.format, x.spec, x.out_features, x.in_features) for x in linears)
    if config.target_bpw:  # of the blocks
        of_head = [x for x in linears if x.block == len(skeleton.blocks)]
        packed = sum(packed_bytes(config.format, x.spec, x.out_features, x.in_features) for x in of_head)
        in_blocks = weights - sum(x.out_features * x.in_features for x in of_head)
        packed += int(config.target_bpw * (in_blocks + left_out.weights) / 8) - left_out.n_bytes
    shapes = {x.key: Shape(x.out_features, x.in_features, x.spec) for x in linears}
    refused = marlin_refusals(config.format, shapes, head_dim(skeleton.blocks[0], skeleton.model.config))
    event = PlanReady(
        model=config.model,
        model_type=checkpoint.model_type,
        parameters=checkpoint.parameters,
        n_blocks=len(skeleton.blocks),
        linears=[
            {
                "block": x.block,
                "name": x.name,
                "out_features": x.out_features,
                "in_features": x.in_features,
                "bits": x.spec.bits,
                "group_size": x.spec.group_size,
                "marlin_refuses": list(refused.get(x.key, ())),
            }
            for x in linears
        ],
        skipped=[list(pair) for pair in skipped],
        bytes_before=checkpoint.nbytes,
        bytes_after=checkpoint.nbytes - replaced + packed,
        bits_per_weight=8 * (packed + left_out.n_bytes) / (weights + left_out.weights),
        peak_host_bytes=forecast.peak_host_bytes,
        output=config.output,
        warnings=_warnings(linears, skipped, config.format, refused),
        host_total_bytes=total_bytes(),
        device_total_bytes=device_total_bytes(skeleton.device),
    )
    return Plan(config, tuple(linears), tuple(skipped), left_out, event, forecast)


def describe(config: RunConfig) -> dict[str, Any]:
    """The plan as JSON, for `--dry-run`; nothing is written and no weight is read."""
    checkpoint = read_checkpoint(resolve_model(config.model).path)
    forecast = estimate(checkpoint, config)
    plan = make_plan(config, build_skeleton(checkpoint))
    check_run(config, checkpoint, forecast)
    return {**dataclasses.asdict(plan.event), "seconds": forecast.seconds, "config": config.to_json()}


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `BadInputError` for a model whose weights are integers already."""
    if checkpoint.quantization is not None:
        method = checkpoint.quantization.get("quant_method", "some method")
        raise BadInputError(f"{checkpoint.path} is already quantized ({method}); quantize the original model instead.")


def refuse_mismatch(skeleton: Skeleton) -> None:
    """Raise `BadInputError` where config.json and the stored tensors disagree."""
    stored, parameters = skeleton.checkpoint.tensors, dict(skeleton.model.named_parameters(remove_duplicate=False))
    where = skeleton.checkpoint.path
    for name, source in skeleton.sources.items():
        if name in parameters and source.shape != stored[source.key].shape:
            raise BadInputError(
                f"The tensor {source.key} in {where} has shape {list(stored[source.key].shape)}, but config.json "
                f"describes {list(source.shape)}; the two do not belong together."
            )
    tied = set(getattr(skeleton.model, "all_tied_weights_keys", None) or ())
    loaded = set(skeleton.targets.values()) | set(skeleton.sources) | skeleton.computed | tied
    present = {id(parameter) for name, parameter in parameters.items() if name in loaded}  # ties share an object
    missing = [name for name, parameter in parameters.items() if name not in loaded and id(parameter) not in present]
    if missing:
        raise BadInputError(f"The weights in {where} lack the tensor '{missing[0]}' that config.json calls for.")


def _choose_linears(config: RunConfig, skeleton: Skeleton) -> tuple[list[LinearPlan], list[tuple[str, str]], LeftOut]:
    linears: list[LinearPlan] = []
    left_out = LeftOut()
    skipped: list[tuple[str, str]] = []
    shared = {*skeleton.shared, *skeleton.shared.values()}
    plain: dict[type, bool] = {}
    for index, block in enumerate(skeleton.blocks):
        for name, module in block.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            path = f"{skeleton.block_name(index)}.{name}"
            source = skeleton.sources.get(f"{path}.weight")
            linear = source.name.removesuffix(".weight") if source else path
            spec = spec_of(config, linear, skeleton.checkpoint.tensors[source.key].dtype if source else "")
            if type(module) not in plain:
                plain[type(module)] = is_plain(module)
            reason = _other_than_linear(name, plain[type(module)], f"{path}.weight" in shared)
            if reason := reason or _skip_reason(module, source, skeleton.checkpoint, config.format, spec):
                skipped.append((linear, reason))
                continue
            dtype = skeleton.checkpoint.tensors[skeleton.sources[f"{path}.weight"].key].dtype
            size = module.weight.numel() * DTYPE_BYTES[dtype]
            if spec is None:
                skipped.append((linear, f"left out by the override {deciding_override(config.overrides, linear)}"))
                left_out = LeftOut(left_out.n_bytes + size, left_out.weights + module.weight.numel())
            else:
                linears.append(
                    LinearPlan(index, name, path, linear, module.out_features, module.in_features, spec, size)
                )
    return linears, skipped + list(_outside(skeleton)), left_out


def _choose_head(config: RunConfig, skeleton: Skeleton, skipped: list[tuple[str, str]]) -> list[LinearPlan]:
    """The output head as one more linear, or, where an override leaves it out, none and a line in `skipped`.

    Raises `BadInputError` where it has no weight of its own, or the format cannot hold it.
    """
    found = skeleton.stored_head()
    if found is None:
        raise BadInputError(TIED_HEAD.format(path=skeleton.checkpoint.path))
    path, info = found
    key = info.name.removesuffix(".weight")
    out_features, in_features = info.shape
    if not (spec := spec_of(config, key, info.dtype)):
        skipped.append((key, f"left out by the override {deciding_override(config.overrides, key)}"))
        return []
    if reason := misfit(config.format, spec.bits, out_features, in_features):
        raise BadInputError(f"The output head {key} cannot be quantized: {reason}; leave out --lm-head.")
    return [LinearPlan(len(skeleton.blocks), path, path, key, out_features, in_features, spec, info.nbytes)]


def _refuse_override_of_head(config: RunConfig, skeleton: Skeleton) -> None:
    """Raise `BadInputError` where an override means the head alone, which stays in floats."""
    head = skeleton.path_of(skeleton.model.get_output_embeddings())
    if config.lm_head or not head:
        return
    key = skeleton.written_name(f"{head}.weight").removesuffix(".weight")
    named = [text for text in config.overrides if text.rpartition("=")[0].strip() == key and not text.endswith("skip")]
    if named:
        raise BadInputError(
            f"The override '{named[0]}' names the output head, which stays in floats; quantize it with --lm-head."
        )


def _leave_misfits(
    linears: list[LinearPlan], skipped: list[tuple[str, str]]
) -> tuple[list[LinearPlan], list[tuple[str, str]]]:
    """Skip the few linears whose inputs their group size does not divide."""
    odd = misfits([(x.key, x.out_features * x.in_features, x.in_features, x.spec) for x in linears])
    reasons = [
        (x.key, f"its {x.in_features} inputs are no multiple of the group size {x.spec.group_size}")
        for x in linears
        if x.key in odd
    ]
    return [x for x in linears if x.key not in odd], skipped + reasons


def _outside(skeleton: Skeleton) -> Iterator[tuple[str, str]]:
    """Parts of the model beside its decoder blocks and its head."""
    head = skeleton.model.get_output_embeddings()
    for part in outside_parts(skeleton.model, skeleton.blocks_name):
        if skeleton.model.get_submodule(part) is not head:
            yield part, "not among the decoder blocks"


def _warnings(
    linears: list[LinearPlan], skipped: list[tuple[str, str]], layout: Format, refused: dict[str, tuple[int, ...]]
) -> list[str]:
    """What servers will not take."""
    choices = {x.key: x.spec for x in linears} | {name: None for name, _ in skipped}
    sentence = disagreement(choices)
    return [*([sentence] if sentence else []), *describe_refusals(layout, refused)]


def _other_than_linear(name: str, plain: bool, shared: bool) -> str | None:
    """Why a linear cannot be quantized because of the part it plays in the model."""
    if picks_experts(name):
        return "it picks experts"
    if not plain:
        return "its class does more than to multiply"
    return "its weight is shared with another block" if shared else None


def _skip_reason(
    module: nn.Linear, source: Source | None, checkpoint: Checkpoint, layout: Format, spec: QuantSpec | None
) -> str | None:
    if source is None:
        return "stored fused with other weights in the checkpoint, or in pieces"
    if not source.name.endswith(".weight"):
        return "stored under a name that has no place for a scale and a zero point"
    if (dtype := checkpoint.tensors[source.key].dtype) not in FLOAT_DTYPES:
        return f"stored as {dtype}"
    return misfit(layout, spec.bits, module.out_features, module.in_features) if spec else None
