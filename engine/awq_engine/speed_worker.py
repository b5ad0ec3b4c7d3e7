"""The process that measures how fast an output is here (`side_worker`): its products, and how it writes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from awq_engine.runs import Run
from awq_engine.side_worker import main
from awq_engine.speeds import SPEED


def _measure(run: Run, settings: dict[str, Any]) -> None:
    from awq_engine.bench import bench_model  # torch takes seconds to import

    step = partial(SPEED.step, run)
    found = bench_model(Path(run.config().output), settings["backend"], settings["device"], step)
    SPEED.store(run, asdict(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], SPEED, _measure))
