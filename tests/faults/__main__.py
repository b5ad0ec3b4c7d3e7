"""Breaks runs and downloads on purpose: `python -m tests.faults [KIND ...] [--moments N] [--steps N]`.

A fault is survived when the engine ended as it should (killed, or with one of our exit codes and a sentence in the
journal), nothing incomplete stands under the output's name, a model that was to be overwritten is there, no process was
left behind, the inputs are as they were, and the resumed run's files are byte for byte those of a run that nothing
happened to, with nothing beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from awq_engine.config import Preset
from tests.faults import downloads, processes, runs
from tests.faults.bench import Bench

Tried = Iterator[tuple[str, object, str | None]]
"""Kind, detail and problem of every fault."""
KINDS: dict[str, Callable[[Bench, argparse.Namespace], Tried]] = {
    "events": runs.deaths_at_events, "moments": runs.deaths_at_moments, "steps": runs.deaths_at_disk_steps,
    "full": runs.full_disks, "broken": runs.broken_disks, "files": runs.bad_files, "machine": runs.bad_machines,
    "device": runs.full_devices, "journal": runs.damaged_journals, "versions": runs.other_versions,
    "second": processes.second_engines, "starter": processes.deaths_of_starters, "network": downloads.bad_networks,
}  # fmt: skip


@dataclass
class Figures:
    """What was tried, by kind of fault, and what did not survive."""

    tried: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, detail: object, problem: str | None) -> None:
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if problem:
            self.failed[kind] = self.failed.get(kind, 0) + 1
            print(f"  {kind} ({detail}): {problem}", flush=True)


def run_all(asked: argparse.Namespace) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["AWQ_TUI_HOME"] = str(Path(folder) / "home")
        bench = Bench(Path(folder), Preset(asked.preset))
        for name in asked.kinds:
            for fault in KINDS[name](bench, asked):
                figures.count(*fault)
    return figures


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    options.add_argument("--moments", type=int, default=100, help="random ones to be killed at")
    options.add_argument(
        "--steps", type=int, default=10_000, help="of those to the disk at most; all if there are fewer"
    )
    options.add_argument("--preset", default=Preset.FAST.value, choices=[preset.value for preset in Preset])
    options.add_argument("--seed", type=int, default=0)
    figures = run_all(options.parse_args())
    for kind, tried in figures.tried.items():
        print(f"{kind:<32} tried {tried:>4}  survived {tried - figures.failed.get(kind, 0):>4}")
    tried, failed = sum(figures.tried.values()), sum(figures.failed.values())
    print(f"{tried} faults tried, {tried - failed} survived")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
