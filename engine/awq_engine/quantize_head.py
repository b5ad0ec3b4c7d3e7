"""The output head, quantized after the last block where a person asks for it.

It reads the hidden states after the final norm. With x as the original model makes them, x' = x + d as the quantized
blocks do, W the head's weight, Q what it is rounded to and D = Q - W, the logits are off by x' D^T + d W^T, so that

    E|x' Q^T - x W^T|^2  =  tr(D G D^T) + 2 tr(W P D^T) + tr(W S W^T),     G = E[x' x'^T],  P = E[d x'^T],  S = E[d d^T]

and every search needs these three matrices alone. The steps are those of a block's linears (`quantize_block`) without
channel scales and without feedback between rows. A head can be larger than any block: its rows are independent, are
read from the file some at a time, and only their integers are ever held together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from awq_engine import events as e
from awq_engine.block_store import finish_block
from awq_engine.capture import loaded_tail
from awq_engine.clip_search import choose_clip
from awq_engine.drift import correct_drift
from awq_engine.error_feedback import round_with_feedback_
from awq_engine.formats.registry import CODECS
from awq_engine.journal import EventSink
from awq_engine.outer import stored_pieces
from awq_engine.plan import Plan
from awq_engine.quantize import choose_qparams, group_ranges, round_to_grid, round_to_nearest, to_int_weight
from awq_engine.recipe import Recipe
from awq_engine.runs import Run
from awq_engine.runtime import with_memory
from awq_engine.skeleton import Skeleton
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics, Moments, weigh
from awq_engine.streams import Streams
from awq_kernels.int_weight import IntWeight


@dataclass
class HeadStatistics:
    """What the head reads."""

    inputs: InputStatistics
    drift: tuple[torch.Tensor, torch.Tensor] | None
    """P and S as above, float32 [in, in]; None where the inputs are those of the original model."""

    def loss(self, rounded: torch.Tensor, original: torch.Tensor) -> float:
        """MSE of the logits, for some rows of the weight, float32 [rows, in] each."""
        difference = rounded - original
        squares = ((difference @ self.inputs.gram) * difference).sum(1)
        if self.drift is not None:
            cross, own = self.drift
            squares += 2 * ((original @ cross) * difference).sum(1) + ((original @ own) * original).sum(1)
        return float(squares.mean())

    def correction(self) -> torch.Tensor | None:
        """What rows are multiplied by for drift correction, float32 [in, in]: that is linear in the weight."""
        if self.drift is None:
            return None
        gram = self.inputs.gram
        return correct_drift(torch.eye(len(gram), device=gram.device), self.inputs, gram - self.drift[0])


@dataclass(frozen=True)
class RoundedRows:
    """Some rows of the head."""

    weight: IntWeight
    losses: dict[str, float]
    """MSE of their logits by step, first `rounding`, last what is kept."""
    plain_mse: float
    """Of the weights, under plain rounding."""
    final_mse: float
    clipped: float
    """Share of groups whose range was shrunk."""


@torch.no_grad()
def quantize_head(
    run: Run, plan: Plan, skeleton: Skeleton, streams: Streams, ids: torch.Tensor, emit: EventSink
) -> None:
    """Round the head, write it as a block of its own and announce it.

    Args:
        streams: as they left the last block.
        ids: int64 [samples, seq], the calibration tokens.
    """
    head, found = plan.head, skeleton.stored_head()
    assert head is not None
    assert found is not None
    started = time.perf_counter()
    emit(e.BlockStarted(head.block, head.path))
    statistics = collect_head_statistics(skeleton, streams, ids, head.in_features)

    def rounded(recipe: Recipe) -> list[RoundedRows]:
        pieces = (piece.to(skeleton.device, torch.float32) for piece in stored_pieces(found[1]))
        correct = statistics.correction() if recipe.drift else None
        return [round_rows(piece, statistics, correct, head.spec, recipe, run.raise_if_cancelled) for piece in pieces]

    parts = rounded(streams.recipe)
    losses = _mean_losses(parts)
    plain, final = losses["rounding"], [*losses.values()][-1]
    if not final <= plain:
        emit(e.BlockFellBack(head.block, "plain rounding changes the logits less", plain, final))
        parts = rounded(Recipe())
        losses, final = _mean_losses(parts), plain
    event = e.LinearQuantized(
        head.block, head.name, head.out_features, head.in_features, losses,
        _mean(parts, lambda part: part.plain_mse), _mean(parts, lambda part: part.final_mse),
        _mean(parts, lambda part: part.clipped), time.perf_counter() - started, None, statistics.inputs.n_tokens,
    )  # fmt: skip
    emit(with_memory(event))
    packed = CODECS[plan.config.format].pack(_joined(parts), head.spec, head.key)
    tensors = {f"{head.key}.{part}": tensor for part, tensor in packed.items()}
    finish_block(run, head.block, tensors, (plain, final), started, emit)


def collect_head_statistics(skeleton: Skeleton, streams: Streams, ids: torch.Tensor, width: int) -> HeadStatistics:
    """Moments of what the head reads, vectors of `width`, on all calibration tokens, batch by batch."""
    inputs, original = streams.inputs, streams.original
    moments = Moments()
    cross, own = (torch.zeros(width, width, device=skeleton.device) for _ in range(2))
    with loaded_tail(skeleton, ids) as read:
        for batch, tokens in enumerate(ids.split(len(inputs.hidden[0]))):
            x = read(tokens, inputs.read(batch))
            moments.add(x, inputs.token_weights())
            if original is not None:
                drift = x - read(tokens, original.hidden[batch])
                weighted, _ = weigh(drift, inputs.token_weights())
                cross.addmm_(weighted.T, x)
                own.addmm_(weighted.T, drift)
    total = moments.total or 1.0
    return HeadStatistics(
        moments.means(width, skeleton.device), None if original is None else (cross.div_(total), own.div_(total))
    )


def round_rows(
    original: torch.Tensor, statistics: HeadStatistics, correction: torch.Tensor | None, spec: QuantSpec,
    recipe: Recipe, checkpoint_cancel: Callable[[], None],
) -> RoundedRows:  # fmt: skip
    """Round some rows of the head, float32 [rows, in], by the steps of `recipe`."""
    checkpoint_cancel()
    target = original.clone() if correction is None else original @ correction
    plain = round_to_nearest(original, spec)
    losses = {"rounding": statistics.loss(plain, original)}
    plain_mse = float((plain - original).square().mean())
    del plain
    qparams, clipped = choose_qparams(*group_ranges(target, spec), spec), 0.0
    if recipe.clips:
        qparams, clipped = choose_clip(target, statistics.inputs, spec)
        losses["clip"] = statistics.loss(round_to_grid(target, qparams, spec), original)
    if recipe.feedback:
        target = round_with_feedback_(target, statistics.inputs, qparams, spec)
        losses["feedback"] = statistics.loss(target, original)
    else:
        target = round_to_grid(target, qparams, spec)
    final_mse = float((target - original).square().mean())
    return RoundedRows(to_int_weight(target, qparams, spec).to("cpu"), losses, plain_mse, final_mse, clipped)


def _joined(parts: Sequence[RoundedRows]) -> IntWeight:
    weights = [part.weight for part in parts]
    return IntWeight(
        torch.cat([weight.q for weight in weights]), torch.cat([weight.scale for weight in weights]),
        torch.cat([weight.zero_point for weight in weights]), weights[0].group_size, weights[0].bits,
    )  # fmt: skip


def _mean(parts: Sequence[RoundedRows], value: Callable[[RoundedRows], float]) -> float:
    """Over all rows."""
    counts = [part.weight.out_features for part in parts]
    return sum(value(part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)


def _mean_losses(parts: Sequence[RoundedRows]) -> dict[str, float]:
    return {step: _mean(parts, lambda part, step=step: part.losses[step]) for step in parts[0].losses}
