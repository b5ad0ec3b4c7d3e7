"""How long does quantizing take, for each preset, and where does the time go?

    python -m benchmarks.quantization [MODEL | SHAPE ...] [--blocks 3] [--presets fast,balanced,best] [--samples 8]
        [--seq-len 512] [--rounds 3] [--device cpu] [--threads 2] [--work FOLDER] [--note TEXT]

MODEL is a folder, SHAPE one of `benchmarks.synthetic.SHAPES`, written first with `--blocks` blocks. Presets take turns
in every round, each run in an engine of its own, as `awq-tui quantize` starts it. A run counts when its output was read
back and gave the logits it should, and every round of a preset must write the same bytes. Printed and appended to
`benchmarks/results/quantization.csv` are the median and the spread over rounds of the whole run and of a block, and
what a model of 32 such blocks would take.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.config import Preset, RunConfig
from awq_engine.runs import create_run, spawn_engine
from awq_engine.state import replay
from benchmarks.memory import prepare

BLOCKS = 32
"""Of the model whose time is told."""


@dataclass(frozen=True)
class Round:
    """One run."""

    seconds: float
    blocks: list[float]
    """Seconds of each."""
    logit_difference: float
    """Of the written model from what the engine had in memory."""
    weights: str
    """A digest of the written tensors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tinyllama-1.1b"])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--presets", default=",".join(Preset))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where synthetic models are kept between calls")
    parser.add_argument("--note", default="", help="what is measured, for the results file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder, label = prepare(name, options.blocks, options.work or Path(temporary))
            presets = [Preset(preset) for preset in options.presets.split(",")]
            rounds = [
                {preset: quantize(folder, preset, options, Path(temporary) / "output") for preset in presets}
                for _ in range(options.rounds)
            ]
            record(list(_rows(label, presets, rounds, options)))


def quantize(folder: Path, preset: Preset, options: argparse.Namespace, output: Path) -> Round:
    """Quantize the model in `folder` in an engine of its own."""
    config = RunConfig(
        model=str(folder), output=str(output), preset=preset, samples=options.samples, seq_len=options.seq_len,
        threads=options.threads, overwrite=True, device=options.device,
    )  # fmt: skip
    run = create_run(config)
    spawn_engine(run).wait()
    state = replay(run.records())
    if state.verified is None or state.started is None or state.updated is None or state.result is None:
        raise SystemExit(state.error.message if state.error else f"the engine failed; see {run.log_path}")
    digest = hashlib.sha256()
    for shard in sorted(output.glob("*.safetensors")):
        digest.update(shard.read_bytes())
    return Round(
        seconds=state.updated - state.started,
        blocks=[block.seconds for _, block in sorted(state.blocks.items())],
        logit_difference=state.verified.max_logit_difference,
        weights=digest.hexdigest(),
    )


def _rows(
    label: str, presets: list[Preset], rounds: list[dict[Preset, Round]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for preset in presets:
        found = [by_preset[preset] for by_preset in rounds]
        if len({one.weights for one in found}) > 1:
            raise SystemExit(f"{preset.value} wrote other weights in another round: its time is not told")
        blocks = [statistics.median(one.blocks) for one in found]
        around = statistics.median(one.seconds - sum(one.blocks) for one in found)
        yield {
            "model": label, "blocks": len(found[0].blocks), "preset": preset.value, "device_asked": options.device,
            "samples": options.samples, "seq_len": options.seq_len, "threads": options.threads, "rounds": len(found),
            "run_s": f"{statistics.median(one.seconds for one in found):.1f}",
            "run_s_spread": _spread([one.seconds for one in found]), "block_s": f"{statistics.median(blocks):.2f}",
            "block_s_spread": _spread(blocks), f"s_of_{BLOCKS}": f"{around + BLOCKS * statistics.median(blocks):.0f}",
            "logit_difference": f"{max(one.logit_difference for one in found):.1e}", "note": options.note,
        }  # fmt: skip


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f}"


def record(rows: list[dict[str, Any]]) -> None:
    from benchmarks.results_file import append_rows

    for row in rows:
        print(row, flush=True)
    append_rows("quantization", rows)


if __name__ == "__main__":
    main()
