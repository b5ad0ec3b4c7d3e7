"""Folds: pairs of a producer and its consumers between which a channel scale cancels.

AWQ multiplies the input columns of some linears (consumers) by a channel scale and divides whatever produces those
channels by it. Which module is the producer differs between architectures, so nothing here knows any: a block is
traced, linears are grouped by the very tensor they read, and every module that ran before with a fitting width is
tried. A random scale on the consumers alone disturbs the block's output; a candidate that takes the disturbance away
again is a fold. What cannot be taken away (a router that reads the same norm, a gate in between) is no fold, whatever
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn

from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.originals import narrowed

PROBE_TOLERANCE = 1e-3
"""Share of the consumers' disturbance, or of the output where that is less, that may be left: float32 noise gives 1e-6,
a wrong producer about 1. (A recurrence can make so much of a disturbance that another reader's would be lost in it.)"""

PROBE_OCTAVES = 5
"""A probe's channel scale lies between 2**-5 and 2**5: wide enough to show a clamp or a soft cap on the way, which does
next to nothing to small values."""

BIAS_LOSS = 2.0**-15
"""Rounding of a norm's bias, relative to its weight, that is as good as none."""
NEIGHBOURS = 16
"""Numbers of the stored dtype to either side of a norm's new weight among which the nearest is taken with which the
bias loses no more than that. They reach some 6 % in bfloat16; small biases need none."""

BIAS_SWAY = 0.01
"""Most that a linear's scale follows the rounding of its bias; only biases too small to matter round more."""


class FoldKind(StrEnum):
    """How a producer is divided by the channel scale."""

    ROWS = "rows"
    """A linear: output rows and bias."""
    NORM = "norm"
    """A norm: weight and bias."""
    UNIT_OFFSET_NORM = "unit_offset_norm"
    """A norm that multiplies by 1 + weight."""


@dataclass(frozen=True)
class InputGroup:
    """Linears of a block that read the same tensor, and what ran before them."""

    consumers: tuple[str, ...]
    in_features: int
    earlier: tuple[str, ...]
    """Names of modules with a weight that ran before, latest first."""


@dataclass(frozen=True)
class Fold:
    """A producer and its consumers, by their names inside the block."""

    producer: str
    consumers: tuple[str, ...]
    kind: FoldKind
    width: int
    """Channels of the producer that carry a scale."""
    row_offset: int = 0
    """First of these channels among the producer's rows, or among every `stride` of them (fused projections)."""
    stride: int = 0
    """Rows of the producer from one head to the next, when each head's queries, keys and values lie together; 0 when
    the channels follow one another."""
    repeat: int = 1
    """Consumer channels per producer channel: query heads per key/value head."""
    head_dim: int = 1
    passive: tuple[str, ...] = ()
    """Modules that read the same and stay in floats (routers); their columns are multiplied too."""
    float_producer: bool = False
    """Whether the producer is a linear that stays in narrow floats."""

    @property
    def powers_of_two(self) -> bool:
        """Whether other scales than powers of two would be lost in the rounding of what stays in floats."""
        return bool(self.passive) or self.float_producer

    def expand(self, channel: torch.Tensor) -> torch.Tensor:
        """From producer channels [width] to consumer channels [in_features]; head by head where heads are shared."""
        heads = channel.view(-1, 1, self.head_dim)
        return heads.expand(-1, self.repeat, -1).reshape(-1)

    def rows_of(self, values: torch.Tensor) -> torch.Tensor:
        """The producer's rows that carry a scale out of all its rows [rows, ...]: a view [heads, each, ...]."""
        heads = values.unflatten(0, (-1, self.stride or len(values)))
        return heads[:, self.row_offset : self.row_offset + self.width // len(heads)]

    def reduce(self, channel: torch.Tensor) -> torch.Tensor:
        """From consumer channels [in_features] to producer channels [width], the mean over shared heads."""
        return channel.view(-1, self.repeat, self.head_dim).mean(1).reshape(-1)


@dataclass(frozen=True)
class Probe:
    """The outcome of looking for a group's fold."""

    group: InputGroup
    fold: Fold | None
    producer: str
    """The fold's producer, or the candidate that came closest, or "" when nothing has a fitting width."""
    error: float
    """What is left of the disturbance: 0 cancels, 1 does nothing."""


def input_groups(block: nn.Module, names: list[str], forward: Callable[[], object]) -> list[InputGroup]:
    """Group the linears `names` of a block by the tensor they read (or tensors, when called again), in their order.

    What ran before an expert's linears does not include other experts. Linears that do not run are in no group.

    Args:
        forward: runs the block once.
    """
    chosen = set(names)
    calls: list[tuple[str, torch.Tensor | None]] = []

    def record(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            tensor = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
            calls.append((name, tensor))  # holding the tensor keeps its address from being reused

        return hook

    weighted = [(name, module) for name, module in block.named_modules() if _weight(module) is not None]
    handles = [module.register_forward_pre_hook(record(name, module)) for name, module in weighted]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return list(_group_calls(calls, chosen, expert_linears(block)))


def _group_calls(
    calls: list[tuple[str, torch.Tensor | None]], chosen: set[str], experts: dict[str, ExpertLinear]
) -> Iterator[InputGroup]:
    first: dict[str, int] = {}
    reads: dict[str, dict[tuple[int, torch.Size], None]] = {}
    for position, (name, tensor) in enumerate(calls):
        if name in chosen and tensor is not None and tensor.numel():
            first.setdefault(name, position)
            reads.setdefault(name, {})[tensor.data_ptr(), tensor.shape] = None
    alike: dict[tuple[tuple[int, torch.Size], ...], list[str]] = {}
    for name, tensors in reads.items():  # in the order of their first calls
        alike.setdefault(tuple(tensors), []).append(name)
    for tensors, consumers in alike.items():
        earlier = [name for name, _ in reversed(calls[: first[consumers[0]]])]
        before = [name for name in earlier if _reaches(name, consumers[0], experts)]
        yield InputGroup(tuple(consumers), tensors[0][1][-1], tuple(dict.fromkeys(before)))


def _reaches(earlier: str, consumer: str, experts: dict[str, ExpertLinear]) -> bool:
    """Whether `earlier` may feed `consumer`: experts do not feed each other."""
    if earlier not in experts or consumer not in experts:
        return True
    return experts[earlier].number == experts[consumer].number


def find_fold(
    block: nn.Module,
    group: InputGroup,
    forward: Callable[[], torch.Tensor],
    head_dim: int,
    seed: int = 0,
    all_alike: Callable[[Fold], list[Fold]] = lambda fold: [fold],
) -> Probe:
    """Try every earlier module as the producer of a group's input; the first that cancels wins.

    Args:
        all_alike: a fold and the same in other experts; they are probed together.
        forward: runs the block on the probe input, float32 [batch, seq, hidden] -> the same.
        head_dim: width of an attention head's values, for those shared between query heads or fused with others.
    """
    baseline = forward()
    closest = Probe(group, None, "", 1.0)
    for candidate in _candidates(block, group, head_dim):
        error = _probe(block, all_alike(candidate), forward, baseline, seed)
        if error < PROBE_TOLERANCE:
            return Probe(group, candidate, candidate.producer, error)
        if error < closest.error:
            closest = Probe(group, None, candidate.producer, error)
    return closest


def _probe(
    block: nn.Module, folds: list[Fold], forward: Callable[[], torch.Tensor], baseline: torch.Tensor, seed: int
) -> float:
    generator = torch.Generator().manual_seed(seed)
    scales = [PROBE_OCTAVES * (torch.rand(fold.width, generator=generator) * 2 - 1) for fold in folds]
    scales = [torch.exp2(s.round() if f.passive else s).to(baseline.device) for f, s in zip(folds, scales, strict=True)]
    saved = [item for fold in folds for item in save(block, fold)]
    try:
        for fold, scale in zip(folds, scales, strict=True):
            scale_consumers(block, fold, scale)
        disturbed = forward()
        for fold, scale in zip(folds, scales, strict=True):
            divide_producer(block, fold, scale)
        restored = forward()
    finally:
        restore(saved)
    disturbance = torch.minimum((disturbed - baseline).norm(), baseline.norm())
    error = float((restored - baseline).norm() / disturbance) if disturbance > 0 else 1.0
    return error if error == error else 1.0  # a NaN is no fold


def scale_consumers(block: nn.Module, fold: Fold, channel_scale: torch.Tensor) -> None:
    """Multiply the consumers' input columns by the scale, float32 [width] in producer channels."""
    columns = fold.expand(channel_scale)
    for name in (*fold.consumers, *fold.passive):
        block.get_submodule(name).weight.data.mul_(columns)  # pyright: ignore[reportCallIssue, reportArgumentType]


def divide_producer(
    block: nn.Module, fold: Fold, channel_scale: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Divide the producer's channels by the scale; return the scale that took effect.

    With `dtype`, a norm's weight and bias, or a linear's bias, are rounded to the dtype they will be stored in, and the
    scale is derived from the rounded values, so that multiplying the consumers by it leaves the function unchanged in
    spite of the rounding.
    """
    producer = block.get_submodule(fold.producer)
    weight: torch.Tensor = producer.weight.data  # pyright: ignore
    bias: torch.Tensor | None = producer.bias.data if getattr(producer, "bias", None) is not None else None  # pyright: ignore
    if fold.kind is FoldKind.ROWS:
        return _divide_rows(weight, bias, fold, channel_scale, dtype)
    offset = 1.0 if fold.kind is FoldKind.UNIT_OFFSET_NORM else 0.0
    effective = _divide_norm(weight, bias, channel_scale, offset, dtype)
    if bias is not None:
        bias.copy_(_rounded(bias / effective, dtype))
    return effective


def _divide_rows(
    weight: torch.Tensor, bias: torch.Tensor | None, fold: Fold, channel_scale: torch.Tensor, dtype: torch.dtype | None
) -> torch.Tensor:
    rows = fold.rows_of(weight)
    scale = channel_scale.view(rows.shape[:2])
    if bias is not None:
        biases = fold.rows_of(bias)
        scale = scale if dtype is None else _scale_kept_by(biases, scale, dtype)
        biases.copy_(_rounded(biases / scale, dtype))
    rows.div_(scale[:, :, None])
    return scale.flatten()


def _rounded(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return values if dtype is None else values.to(dtype)


def _divide_norm(
    weight: torch.Tensor, bias: torch.Tensor | None, channel_scale: torch.Tensor, offset: float,
    dtype: torch.dtype | None,
) -> torch.Tensor:  # fmt: skip
    gain = weight + offset
    stored = gain / channel_scale - offset
    if dtype is not None:
        stored = stored.to(dtype)
        stored = (stored if bias is None else _kind_to(bias, stored, gain, offset)).to(weight.dtype)
    new_gain = stored + offset
    usable = (new_gain != 0) & (gain != 0) & torch.isfinite(new_gain)
    weight.copy_(torch.where(usable, stored, weight))
    ones = torch.ones_like(channel_scale)
    return torch.where(usable, gain / torch.where(usable, new_gain, ones), ones)


def _kind_to(bias: torch.Tensor, stored: torch.Tensor, gain: torch.Tensor, offset: float) -> torch.Tensor:
    """The nearest numbers to `stored`, of its dtype, with which a bias that shrinks like the gain is hardly rounded."""
    if stored.dtype.itemsize != 2:
        return stored
    steps = torch.arange(2 * NEIGHBOURS + 1, device=stored.device, dtype=torch.int16)
    steps = (steps + 1) // 2 * (1 - 2 * (steps % 2))  # 0, -1, 1, -2, 2, ...: of equals the first is taken
    near = (stored.view(torch.int16) + steps[:, None]).view(stored.dtype)
    new_gain = near.to(bias.dtype) + offset
    shrunk = bias * (new_gain / gain)
    lost = (shrunk - shrunk.to(stored.dtype)).abs()
    lost = torch.where(lost <= BIAS_LOSS * new_gain.abs(), 0.0, lost)
    best = torch.where(torch.isfinite(lost), lost, torch.inf).argmin(0)
    return near.gather(0, best[None])[0]


def _scale_kept_by(bias: torch.Tensor, channel_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale next to `channel_scale` by which the bias can be divided without rounding; itself where none is."""
    scale = bias / (bias / channel_scale).to(dtype)
    return torch.where((scale / channel_scale - 1).abs() < BIAS_SWAY, scale, channel_scale)


def _candidates(block: nn.Module, group: InputGroup, head_dim: int) -> Iterator[Fold]:
    for name in group.earlier:
        if name in group.consumers:
            continue
        module = block.get_submodule(name)
        weight = _weight(module)
        if weight is None:
            continue
        if weight.ndim == 1 and weight.numel() == group.in_features:
            for kind in (FoldKind.NORM, FoldKind.UNIT_OFFSET_NORM):
                yield Fold(name, group.consumers, kind, group.in_features)
        elif isinstance(module, nn.Linear):
            yield from _row_candidates(name, module.out_features, group, head_dim)


def _row_candidates(name: str, rows: int, group: InputGroup, head_dim: int) -> Iterator[Fold]:
    width = group.in_features
    if rows >= width:
        for offset in sorted({0, rows - width, width if 2 * width <= rows else 0}, reverse=True):
            yield Fold(name, group.consumers, FoldKind.ROWS, width, row_offset=offset)
    # values shared between query heads: a projection of their own, or the last rows of a fused q|k|v
    for values in (rows, (rows - width) // 2):
        if 0 < values < width and width % values == 0 and values % head_dim == 0:
            yield Fold(name, group.consumers, FoldKind.ROWS, values, rows - values, 0, width // values, head_dim)
    # head by head, values last: [q|k|v] for each, [q|..|q|k|v] for each that queries share, [k|v] of a latent
    for heads in dict.fromkeys((width // head_dim, (rows - width) // (2 * head_dim))):
        values = heads * head_dim
        if heads > 1 and values < rows and width % values == 0 and rows % heads == 0:
            stride, repeat = rows // heads, width // values
            yield Fold(name, group.consumers, FoldKind.ROWS, values, stride - head_dim, stride, repeat, head_dim)


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.ndim in (1, 2) else None


def save(block: nn.Module, fold: Fold) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All parameters that applying a fold changes, each with a copy of its values in no more memory than they need."""
    modules = [block.get_submodule(name) for name in (fold.producer, *fold.consumers, *fold.passive)]
    parameters = [p.data for module in modules for p in module.parameters(recurse=False)]
    return [(parameter, narrowed(parameter)) for parameter in parameters]


def restore(saved: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Undo what was done since `save`."""
    for parameter, before in saved:
        parameter.copy_(before)
