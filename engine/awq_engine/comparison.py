"""Several recipes on one model, side by side: the runs that takes, what was measured on them, and the table of it.

A comparison has no state of its own. Each entry is an ordinary run with a request of its own; the same comparison asked
for again makes the same requests, and so finds its runs: finished ones are not done again, stopped ones go on. What was
measured on a run's output is kept in the run's directory (`evaluation.json`), so the output itself may be dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awq_engine.config import Method, Preset, RunConfig
from awq_engine.errors import BadInputError, UsageError
from awq_engine.format import UNKNOWN, size
from awq_engine.output import folder_name
from awq_engine.runs import Run, list_runs

RECIPES: dict[str, tuple[Method, Preset]] = {
    "rtn": (Method.RTN, RunConfig.preset),
    "gptq-fast": (Method.GPTQ, Preset.FAST),
    "gptq": (Method.GPTQ, Preset.BALANCED),
    "gptq-best": (Method.GPTQ, Preset.BEST),
    **{preset.value: (Method.AWQ, preset) for preset in Preset},
}
"""What `--recipes` may name."""
HEADER = (
    "recipe", "bits", "group", "bits/weight", "size", "perplexity", "KL", "±", "top-1", "seconds", "memory"
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the table, before it is measured."""

    recipe: str
    config: RunConfig

    @property
    def label(self) -> str:
        return f"{self.recipe} W{self.config.bits} {_group(self.config.group_size)}"


@dataclass(frozen=True)
class Row:
    """One line of the table; losses are per token of the evaluation text, in nats."""

    recipe: str
    bits: int
    group_size: int
    bits_per_weight: float
    """Of the quantized linears, scales and zero points included."""
    bytes_after: int
    """Of all tensors of the output."""
    perplexity: float | None
    """None when it is too large for a float."""
    kl: float
    kl_error: float | None
    """Standard error over the windows; None with a single one."""
    top1_agreement: float
    seconds: float
    """Of quantizing, calibration and verification included."""
    peak_host_bytes: int
    peak_device_bytes: int
    run_id: str
    output: str | None
    """The folder with the model; None once it was dropped."""


def entries(base: RunConfig, recipes: Sequence[str], bits: Sequence[int], group_sizes: Sequence[int]) -> list[Entry]:
    """Every recipe at every size; `base.output` is the folder their outputs go into. Raises `UsageError`."""
    if unknown := [name for name in recipes if name not in RECIPES]:
        raise UsageError(f"There is no recipe '{unknown[0]}'; choose from {', '.join(RECIPES)}.")
    found = []
    for width in dict.fromkeys(bits):
        for group_size in dict.fromkeys(group_sizes):
            for recipe in dict.fromkeys(recipes):
                method, preset = RECIPES[recipe]
                name = folder_name(recipe, bits=width, group_size=group_size, symmetric=base.symmetric)
                output = str(Path(base.output) / name)
                shape = {"bits": width, "group_size": group_size, "method": method, "preset": preset}
                found.append(Entry(recipe, replace(base, output=output, **shape)))
    return found


def earlier_run(config: RunConfig) -> Run | None:
    """The newest run with this very request, or None."""
    wanted = replace(config, overwrite=False)
    for run in list_runs():
        try:
            if replace(run.config(), overwrite=False) == wanted:
                return run
        except BadInputError:
            continue
    return None


def row(entry: Entry, result: dict[str, Any], found: dict[str, Any]) -> Row:
    """The line of a run's result (`quantize --json`) and what was found on it (`eval --json`)."""
    output = str(result["output"])
    return Row(
        entry.recipe, entry.config.bits, entry.config.group_size, result["bits_per_weight"], result["bytes_after"],
        found["perplexity"], found["kl"], found["kl_error"], found["top1_agreement"], result["seconds"],
        result["peak_host_bytes"], result["peak_device_bytes"], result["run_id"],
        output if Path(output).is_dir() else None,
    )  # fmt: skip


def cells(rows: Iterable[Row], original: dict[str, Any]) -> list[list[str]]:
    """The table's cells under `HEADER`, the original model first.

    Args:
        original: its `bytes` and `perplexity`.
    """
    first = ["original", "", "", "", size(original["bytes"]), _perplexity(original["perplexity"]), *[""] * 5]
    return [first, *map(_cells, rows)]


def _cells(found: Row) -> list[str]:
    error = UNKNOWN if found.kl_error is None else f"{found.kl_error:.5f}"
    return [
        found.recipe, str(found.bits), _group(found.group_size), f"{found.bits_per_weight:.2f}",
        size(found.bytes_after), _perplexity(found.perplexity), f"{found.kl:.5f}", error,
        f"{100 * found.top1_agreement:.2f}%", f"{found.seconds:.1f}", size(found.peak_host_bytes),
    ]  # fmt: skip


def markdown(rows: Iterable[Row], original: dict[str, Any], caption: str) -> str:
    """The table for a README or an issue, under a line that says what was measured."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *cells(rows, original)]
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(rows: Iterable[Row], original: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Everything in the table, unrounded."""
    return {**about, "original": original, "rows": [dataclasses.asdict(found) for found in rows]}


def _group(group_size: int) -> str:
    return "row" if group_size == -1 else f"g{group_size}"


def _perplexity(value: float | None) -> str:
    return "too large" if value is None else f"{value:.4f}"
