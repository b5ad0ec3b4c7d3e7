"""What a run will cost and why it cannot work, from the headers of the checkpoint alone.

Cheap enough for every keystroke of the configure screen: no weight is read, nothing is imported beyond the
standard library. The engine's own plan, made from the real modules, is exact; this is its forecast:

    size    packed integers, scales and zero points as the format stores them; every other tensor as it is
    memory  Python with torch, the hidden states, one block as stored, and what the step that takes most needs on top:
            the block in float32 with its Gram matrices, or as integers with the widest linear's matrices
    time    float operations of the search divided by a rate, measured in the newest finished run or else guessed
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from awq_engine.checkpoint import Checkpoint, TensorInfo
from awq_engine.config import GROUP_SIZES, RunConfig
from awq_engine.errors import AwqError
from awq_engine.events import PlannedLinear, PlanReady
from awq_engine.formats.limits import misfit, packed_bytes
from awq_engine.recipe import MOMENT_BYTES, OUTPUT_BLOCK, recipe_of
from awq_engine.runs import Run, RunStatus, list_runs
from awq_engine.spec import QuantSpec, spec_of
from awq_engine.state import RunState, replay

RUNTIME_BYTES = 470 << 20
"""Resident memory of Python with torch and transformers loaded."""
PIECES_BYTES = 6 * 4 << 22
"""Of what is computed from a piece of a weight."""
DEFAULT_FLOPS_PER_CORE = 32e9
"""Float operations a second on one core of an ordinary CPU, all phases of a run taken together."""
MEASURABLE_WORK = 1e10
"""Float operations; the time of smaller runs is mostly fixed costs and tells nothing about larger ones."""
GRID_PASSES = {"scales": 40, "clips": 70, "feedback": 4, "drift": 4, "sensitivity": 8}
"""Products of a weight with a Gram matrix per linear, by step of the recipe."""
FORWARD_PASSES = {"sequential": 5, "drift": 9, "sensitivity": 7}
"""Times a block runs on all calibration tokens for a step of the recipe: before each of about four groups, and for the
drift once more each, in the original too; for the sensitivity one pass down, one up and one in the block."""
COMMON_PASSES = 3
"""Of any recipe: once for the statistics and in part for the comparison."""
TRANSPOSED_MODEL_TYPES = frozenset({"gpt2", "openai-gpt"})
"""Their linears are stored [in_features, out_features]."""
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Parts of a block that pick experts and weigh them. Small and decisive, they stay as they are, and so every server
that knows mixtures expects it; no other linears of decoder blocks are called so."""

HEAD_MATRICES = 8
"""Square matrices of the head's width that are held for it, besides four bytes a weight while it is packed."""
SMALL_SHARE = 0.1
"""Of the weights: what may stay in floats because a group size that suits the rest does not divide it."""

HEAD_BLOCK = 1 << 30
"""Stands for what comes after the last block: the output head."""
TIED_HEAD = (
    "The output head of {path} has no weight of its own to pack: it is the embedding table, or no plain linear layer; "
    "leave out --lm-head."
)
_HEAD_NAMES = r"^(?:[^.0-9]+\.)*(?:lm_head|embed_out|output)\.weight$"

_BLOCK_WEIGHT = re.compile(r"(?P<blocks>(?:[^.]+\.)*?[^.0-9][^.]*)\.(?P<number>\d+)\.(?P<name>.+)\.weight")

_FUSED_EXPERTS = re.compile(
    r"(?P<blocks>(?:[^.]+\.)*?[^.0-9][^.]*)\.(?P<number>\d+)\.(?P<experts>.*(?:experts|moe))"
    r"\.(?P<linear>gate_up_proj|gate_proj|up_proj|down_proj|input_linear|output_linear|w13_weight|w2_weight)"
    r"(?:\.weight)?"
)
_EXPERT = re.compile(r"experts\.\d+\.")
_READ_TOGETHER = dict.fromkeys(("k_proj", "v_proj"), "q_proj") | {"up_proj": "gate_proj", "w3": "w1"}
"""Linears that read what another reads; for the forecast of memory alone, where a name too few costs little."""
FUSED_PAIRS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("gate_up_proj", "input_linear", "w13_weight"), ("gate_proj", "up_proj")
)
"""Fused tensors that hold two linears of each expert."""


@dataclass(frozen=True)
class BlockLinear:
    """A weight matrix of a decoder block, as its tensor describes it."""

    block: int
    name: str
    """Inside the block, e.g. `self_attn.q_proj`."""
    out_features: int
    in_features: int
    tensor: TensorInfo

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features

    @property
    def key(self) -> str:
        """Its name in the checkpoint, without `.weight`."""
        return self.tensor.name.removesuffix(".weight")


@dataclass(frozen=True)
class Speed:
    """How fast this machine works."""

    flops: float
    """Float operations a second."""
    source: str
    """A clause that says where the figure comes from."""


@dataclass(frozen=True)
class Estimate:
    """A forecast of one run."""

    n_blocks: int
    n_linears: int
    parameters: int
    """Of the whole model."""
    quantized_parameters: int
    bytes_before: int
    """Of all tensors."""
    bytes_after: int
    bits_per_weight: float
    """Of the linears that are quantized or left out by an override, scales included; 0 when none is quantized."""
    blocks_bytes: int
    """Of the finished blocks kept in the run directory until the output is complete."""
    peak_host_bytes: int
    device_bytes: int
    """Of the block under work: what a GPU has to hold where there is one, besides the driver's own."""
    hidden_bytes: int
    """Of the hidden states, which are kept on disk when memory is short."""
    spills: bool
    """Whether the memory the run may take is too short for them."""
    seconds: float
    speed: Speed
    problems: tuple[str, ...]
    """Sentences; a run with any of these cannot start."""
    notes: tuple[str, ...]
    """Sentences on what is not as one might expect, but works."""


def estimate(checkpoint: Checkpoint, config: RunConfig, speed: Speed | None = None) -> Estimate:
    """Forecast the run `config` on `checkpoint`.

    Args:
        speed: what `measured_speed` returned, kept by the caller; None takes the default rate of this machine.
    """
    found = [*block_linears(checkpoint), *head_linears(checkpoint, config)]
    wanted = {linear.key: spec for linear in found if (spec := spec_of(config, linear.key))}
    unheld = _unheld(found, wanted, config)
    specs = {key: spec for key, spec in wanted.items() if key not in unheld}
    linears = [linear for linear in found if linear.key in specs]
    odd = misfits([(linear.key, linear.numel, linear.in_features, specs[linear.key]) for linear in linears])
    linears = [linear for linear in linears if linear.key not in odd]
    speed = speed or default_speed()
    of_head = [linear for linear in linears if linear.block == HEAD_BLOCK]
    fixed = max(_fixed_bytes([x for x in linears if x not in of_head], config), *map(_head_bytes, of_head), 0)
    hidden = _hidden_bytes(linears, config)
    spills = 0 < config.max_memory < fixed + hidden
    packed = sum(packed_bytes(config.format, specs[x.key], x.out_features, x.in_features) for x in linears)
    weights = sum(linear.numel for linear in linears)
    left_out = [linear for linear in found if linear.key not in wanted]
    left_bytes = sum(linear.tensor.nbytes for linear in left_out)
    all_weights = weights + sum(linear.numel for linear in left_out)
    if config.target_bpw:  # of the blocks
        packed = sum(packed_bytes(config.format, specs[x.key], x.out_features, x.in_features) for x in of_head)
        in_blocks = all_weights - sum(linear.numel for linear in of_head)
        packed += int(config.target_bpw * in_blocks / 8) - left_bytes
    untouched = checkpoint.nbytes - sum(linear.tensor.nbytes for linear in linears)
    shapes = [(linear.out_features, linear.in_features) for linear in linears]
    return Estimate(
        n_blocks=len({linear.block for linear in linears} - {HEAD_BLOCK}),
        n_linears=len(linears),
        parameters=checkpoint.parameters,
        quantized_parameters=weights,
        bytes_before=checkpoint.nbytes,
        bytes_after=untouched + packed,
        bits_per_weight=8 * (packed + left_bytes) / all_weights if weights else 0.0,
        blocks_bytes=packed,
        peak_host_bytes=fixed if spills else fixed + hidden,
        device_bytes=fixed - RUNTIME_BYTES,
        hidden_bytes=hidden,
        spills=spills,
        seconds=work(shapes, config) / speed.flops,
        speed=speed,
        problems=tuple(find_problems(checkpoint, linears, specs, config)),
        notes=_unheld_notes(unheld),
    )


def block_linears(checkpoint: Checkpoint) -> list[BlockLinear]:
    """The matrices of the decoder blocks, in block order: those under the numbering that holds most weights."""
    stacks: dict[str, list[BlockLinear]] = {}
    transposed = checkpoint.model_type in TRANSPOSED_MODEL_TYPES
    hidden = _hidden_size(checkpoint)
    for tensor in checkpoint.tensors.values():
        if hidden and (fused := _FUSED_EXPERTS.fullmatch(tensor.name)) and len(tensor.shape) == 3 and tensor.numel:
            stacks.setdefault(fused["blocks"], []).extend(_experts(tensor, fused, hidden))
            continue
        match = _BLOCK_WEIGHT.fullmatch(tensor.name)
        if match is None or len(tensor.shape) != 2 or not tensor.numel:
            continue
        name = match["name"]
        if picks_experts(name):
            continue
        out_features, in_features = reversed(tensor.shape) if transposed else tensor.shape
        linear = BlockLinear(int(match["number"]), name, out_features, in_features, tensor)
        stacks.setdefault(match["blocks"], []).append(linear)
    largest = max(stacks.values(), key=lambda stack: sum(linear.numel for linear in stack), default=[])
    return sorted(largest, key=lambda linear: linear.block)


def picks_experts(name: str) -> bool:
    """Whether the linear of this name inside a block belongs to a router."""
    return not ROUTERS.isdisjoint(name.split("."))


def head_linears(checkpoint: Checkpoint, config: RunConfig) -> list[BlockLinear]:
    """The output head, if it is to be quantized and is stored under one of its usual names."""
    names = [name for name in checkpoint.tensors if re.search(_HEAD_NAMES, name)] if config.lm_head else []
    tensors = [tensor for name in names if len((tensor := checkpoint.tensors[name]).shape) == 2]
    return [BlockLinear(HEAD_BLOCK, t.name.removesuffix(".weight"), t.shape[0], t.shape[1], t) for t in tensors[:1]]


def _head_problem(checkpoint: Checkpoint, config: RunConfig) -> str | None:
    """Why the head cannot be quantized, as far as config.json tells."""
    tied = checkpoint.config.get("tie_word_embeddings", _text_config(checkpoint).get("tie_word_embeddings"))
    return TIED_HEAD.format(path=checkpoint.path) if config.lm_head and tied is True else None


def _experts(tensor: TensorInfo, match: re.Match[str], hidden: int) -> Iterator[BlockLinear]:
    """The linears in a fused tensor [experts, ., .]; `hidden` tells its inputs from its outputs."""
    count, first, second = tensor.shape
    down = match["linear"] in ("down_proj", "output_linear", "w2_weight")
    in_features = first + second - hidden if down == (hidden in (first, second)) else hidden
    out_features = first * second // in_features
    names = FUSED_PAIRS.get(match["linear"], (match["linear"],))
    for expert in range(count):
        for linear in names:
            name = f"{match['experts']}.{expert}.{linear}"
            share = dataclasses.replace(
                tensor,
                name=f"{match['blocks']}.{match['number']}.{name}.weight",
                nbytes=tensor.nbytes // count // len(names),
            )
            yield BlockLinear(int(match["number"]), name, out_features // len(names), in_features, share)


def _text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What describes the language model."""
    text_config = checkpoint.config.get("text_config")
    return text_config if isinstance(text_config, dict) else checkpoint.config


def _hidden_size(checkpoint: Checkpoint) -> int:
    hidden = _text_config(checkpoint).get("hidden_size")
    return hidden if type(hidden) is int else 0


def find_problems(
    checkpoint: Checkpoint, linears: list[BlockLinear], specs: dict[str, QuantSpec], config: RunConfig
) -> list[str]:
    """Every reason why `config` cannot work on this model, as sentences; empty when it can."""
    if checkpoint.quantization is not None:
        method = checkpoint.quantization.get("quant_method", "some method")
        return [f"{checkpoint.path} is already quantized ({method}); start from the original model."]
    if not linears:
        return [
            f"{checkpoint.path} has no numbered blocks with weights to quantize (model type {checkpoint.model_type})."
            if not config.overrides
            else "The overrides leave no linear to quantize."
        ]
    widths = [(linear.tensor.name, linear.in_features, specs[linear.key]) for linear in linears]
    found = [group_problem(widths), _context_problem(checkpoint, config), _head_problem(checkpoint, config)]
    return [problem for problem in found if problem]


def fitting_group_sizes(linears: Iterable[BlockLinear]) -> list[int]:
    """The supported group sizes that divide every row; -1 always does."""
    return _sizes_dividing({linear.in_features for linear in linears})


def _sizes_dividing(widths: set[int]) -> list[int]:
    return [size for size in GROUP_SIZES if size == -1 or all(width % size == 0 for width in widths)]


def group_problem(linears: list[tuple[str, int, QuantSpec]]) -> str | None:
    """Why a group size cannot work on linears (name, in_features, spec), and which ones would; None when it can."""
    misfits = [(name, width, spec.group_size) for name, width, spec in linears if width % spec.group_of(width)]
    if not misfits:
        return None
    (name, width, group_size), others = misfits[0], len(misfits) - 1
    more = f" (and {others} more)" if others else ""
    sizes = ", ".join(map(str, _sizes_dividing({width for _, width, _ in linears})))
    return (
        f"A group size of {group_size} does not divide the {width} inputs of {name}{more}; "
        f"choose a group size that fits every layer: {sizes}."
    )


def misfits(linears: list[tuple[str, int, int, QuantSpec]]) -> set[str]:
    """Names of linears (name, weights, inputs, spec) to leave as they are since their group size does not divide them.

    None when they hold more than `SMALL_SHARE` of all weights: then it is the group size that is wrong.
    """
    odd = {name: weights for name, weights, width, spec in linears if width % spec.group_of(width)}
    total = sum(weights for _, weights, _, _ in linears)
    return set(odd) if sum(odd.values()) <= SMALL_SHARE * total else set()


def _unheld(linears: list[BlockLinear], specs: dict[str, QuantSpec], config: RunConfig) -> dict[str, str]:
    """Why the format cannot hold a linear, as clauses by their names; these stay as they are."""
    reasons = {
        x.key: misfit(config.format, specs[x.key].bits, x.out_features, x.in_features)
        for x in linears
        if x.key in specs
    }
    return {key: reason for key, reason in reasons.items() if reason}


def _unheld_notes(unheld: dict[str, str]) -> tuple[str, ...]:
    if not unheld:
        return ()
    (name, reason), others = next(iter(unheld.items())), len(unheld) - 1
    more = f" (and {others} more)" if others else ""
    return (f"{name}.weight{more} stays as it is: {reason}.",)


def _context_problem(checkpoint: Checkpoint, config: RunConfig) -> str | None:
    limit = _text_config(checkpoint).get("max_position_embeddings")
    if type(limit) is int and 0 < limit < config.seq_len:
        return f"Sequences of {config.seq_len} tokens do not fit the model's context of {limit}; use --seq-len {limit}."
    return None


def _fixed_bytes(linears: list[BlockLinear], config: RunConfig) -> int:
    """Peak host memory without the hidden states: of the largest block, at the step that takes most."""
    blocks: dict[int, list[BlockLinear]] = {}
    for linear in linears:
        blocks.setdefault(linear.block, []).append(linear)
    if not blocks:
        return RUNTIME_BYTES
    block = max(blocks.values(), key=lambda members: sum(linear.numel for linear in members))
    recipe = recipe_of(config)
    weights, stored = sum(linear.numel for linear in block), sum(linear.tensor.nbytes for linear in block)
    largest, widest = max(linear.numel for linear in block), max(linear.in_features for linear in block)
    gram, pieces = 4 * widest**2, min(PIECES_BYTES, 24 * largest)
    compared = 4 * weights + 8 * largest
    if not any(asdict(recipe).values()):
        return RUNTIME_BYTES + stored + compared + pieces
    observed = 4 * weights + _moment_bytes(block) + (6 * largest if recipe.scales else 0)
    drifted = weights + 7 * largest + gram + 4 * min(largest, widest**2) if recipe.drift else 0
    rounded = weights + 7 * largest + gram * (2 if recipe.feedback else 1)
    if recipe.sensitivity:
        rounded += 3 * 4 * min(OUTPUT_BLOCK * widest, largest)
    returned = 5 * weights + 8 * largest
    return RUNTIME_BYTES + stored + pieces + max(compared, observed, drifted, rounded, returned)


def _moment_bytes(block: list[BlockLinear]) -> int:
    """Of the inputs' Gram matrices that are held when all of a block is observed: each site's, and some experts'."""
    sites: dict[str, int] = {}
    experts: dict[str, int] = {}
    for linear in block:
        parent, _, role = linear.name.rpartition(".")
        site = parent + _READ_TOGETHER.get(role, role)
        if _EXPERT.search(linear.name):
            experts[site] = 4 * linear.in_features**2
        else:
            sites[site] = 4 * linear.in_features**2
    return sum(sites.values()) + min(2 * MOMENT_BYTES, sum(experts.values()))


def _head_bytes(head: BlockLinear) -> int:
    """Peak host memory while the output head is quantized: its integers, packed and not, and matrices of its width."""
    return RUNTIME_BYTES + 4 * head.numel + 4 * HEAD_MATRICES * head.in_features**2


def _hidden_bytes(linears: list[BlockLinear], config: RunConfig) -> int:
    """Of the float32 hidden states: what enters a block, what leaves it, and of the original model where it differs."""
    width = min((linear.in_features for linear in linears), default=0)
    streams = 3 if recipe_of(config).drift else 2
    return streams * 4 * config.samples * config.seq_len * width


def work(shapes: Iterable[tuple[int, int]], config: RunConfig) -> float:
    """Float operations of a run over linears of these (out_features, in_features)."""
    tokens = config.samples * config.seq_len
    steps = {name for name, taken in asdict(recipe_of(config)).items() if taken}
    passes = COMMON_PASSES + sum(cost for step, cost in FORWARD_PASSES.items() if step in steps)
    grid_passes = sum(cost for step, cost in GRID_PASSES.items() if step in steps)
    total = 0.0
    for out_features, in_features in shapes:
        total += 2.0 * passes * tokens * out_features * in_features
        if steps:
            total += 2.0 * (tokens + grid_passes * out_features) * in_features**2
    return total


def default_speed() -> Speed:
    """The guess for a machine that has not finished a run yet."""
    cores = os.cpu_count() or 1
    return Speed(DEFAULT_FLOPS_PER_CORE * cores, f"a guess for {cores} CPU cores")


def measured_speed(device: str = "auto") -> Speed | None:
    """The rate of the newest finished run that was started for the same device; None before the first.

    Reads the journals of up to ten runs: call it once, not at every keystroke.
    """
    for run in list_runs()[:10]:
        try:
            if run.status() is RunStatus.DONE and run.config().device == device:
                speed = speed_of(run, replay(run.records()))
                if speed is not None:
                    return speed
        except AwqError:
            continue
    return None


def speed_of(run: Run, state: RunState) -> Speed | None:
    """Float operations per second that a finished run reached, its block times taken together."""
    seconds = sum(block.seconds for block in state.blocks.values())
    if state.plan is None or seconds <= 0:
        return None
    flops = planned_work(state.plan, run.config())
    return Speed(flops / seconds, f"measured in run {run.id}") if flops >= MEASURABLE_WORK else None


def planned_work(plan: PlanReady, config: RunConfig) -> float:
    """Float operations of a run as its plan has it."""
    return work((_shape(linear) for linear in plan.linears), config)


def _shape(linear: PlannedLinear) -> tuple[int, int]:
    return int(linear["out_features"]), int(linear["in_features"])
