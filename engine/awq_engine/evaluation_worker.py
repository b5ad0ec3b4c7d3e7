"""The process that measures outputs (`side_worker`); settings are those of `evaluations.evaluation_settings`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from awq_engine.detached import NICENESS
from awq_engine.evaluations import EVALUATION, store_evaluation
from awq_engine.models import resolve_model
from awq_engine.runs import Run
from awq_engine.side_worker import main


def _evaluate(run: Run, settings: dict[str, Any]) -> None:
    from awq_engine.evaluate import evaluate  # torch takes seconds to import

    config = run.config()
    found = evaluate(
        Path(config.output), against=resolve_model(config.model).path, text=settings["text"],
        seq_len=settings["seq_len"], max_tokens=settings["max_tokens"], device=settings["device"],
        on_progress=partial(EVALUATION.step, run),
    )  # fmt: skip
    store_evaluation(run, settings, found.to_json())


if __name__ == "__main__":
    os.nice(NICENESS)
    sys.exit(main(sys.argv[1:], EVALUATION, _evaluate))
