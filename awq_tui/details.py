"""What the models screen says about one model: its shape, and what quantizing it would give and cost."""

from __future__ import annotations

from dataclasses import dataclass

from awq_engine.checkpoint import Checkpoint
from awq_engine.config import Preset, RunConfig
from awq_engine.errors import AwqError
from awq_engine.estimate import Estimate, Speed, block_linears, estimate, fitting_group_sizes
from awq_tui.catalog import Entry, Where, facts
from awq_tui.hub_catalog import open_checkpoint

PREFERRED_GROUP_SIZES = (128, 64, 32, -1)
DEFAULT_SEQ_LEN = RunConfig.seq_len


@dataclass(frozen=True)
class Details:
    """Everything the pane shows about one entry."""

    entry: Entry
    facts: tuple[str, ...] = ()
    group_size: int = 128
    """The group size of the forecasts: 128, or the largest that divides every layer."""
    forecasts: tuple[tuple[Preset, Estimate], ...] = ()
    """One per preset; empty for a model that cannot be quantized."""
    problems: tuple[str, ...] = ()
    looking: bool = False
    """More will be known as soon as the Hub has answered."""


def look_into(entry: Entry, speed: Speed | None) -> Details:
    """Read the model's headers, on the Hub too, and forecast a run per preset; blocks, never raises our errors."""
    if entry.problem:
        return Details(entry, problems=(entry.problem,))
    if entry.where is Where.HUB and entry.quantized:
        return Details(entry)
    try:
        checkpoint = open_checkpoint(entry)
    except (AwqError, OSError) as error:
        return Details(entry, problems=(str(error),))
    lines = tuple(facts(checkpoint))
    if entry.quantized:
        return Details(entry, lines)
    fitting = fitting_group_sizes(block_linears(checkpoint))
    group_size = next(size for size in PREFERRED_GROUP_SIZES if size in fitting)
    seq_len = fitting_seq_len(checkpoint)
    configs = [RunConfig(entry.model, "/", group_size=group_size, preset=preset, seq_len=seq_len) for preset in Preset]
    forecasts = [(config.preset, estimate(checkpoint, config, speed)) for config in configs]
    problems = forecasts[0][1].problems
    return Details(entry, lines, group_size, () if problems else tuple(forecasts), problems)


def fitting_seq_len(checkpoint: Checkpoint) -> int:
    """Tokens per calibration sequence: the usual 512, or the model's whole context where that is shorter."""
    nested = checkpoint.config.get("text_config")
    limit = (nested if isinstance(nested, dict) else checkpoint.config).get("max_position_embeddings")
    return min(DEFAULT_SEQ_LEN, limit) if type(limit) is int and limit > 0 else DEFAULT_SEQ_LEN
