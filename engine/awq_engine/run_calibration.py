"""The calibration tokens of a run: made once, kept in the run directory, the same for every engine process."""

from __future__ import annotations

import json
from dataclasses import asdict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from awq_engine.calibration import Calibration, SourceUse, load_calibration
from awq_engine.checkpoint import Checkpoint
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError
from awq_engine.runs import Run
from awq_engine.runtime import load_tokenizer
from awq_engine.self_text import write_windows
from awq_engine.storage import write_atomically


def run_calibration(run: Run, config: RunConfig, checkpoint: Checkpoint) -> Calibration:
    """The run's tokens, from its directory if an earlier process made them.

    Raises `BadInputError` for text that cannot be used, or is too short; `ResourceError` when the model is to write the
    text itself and does not fit into memory.
    """
    path = run.path / "calibration.safetensors"
    if path.exists():
        try:
            with safe_open(str(path), "pt") as file:
                uses = [SourceUse(**use) for use in json.loads(file.metadata()["sources"])]
                weights = file.get_tensor("weights") if "weights" in file.keys() else None  # noqa: SIM118 - no mapping
                return Calibration(file.get_tensor("ids"), tuple(uses), weights)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{path} is damaged ({error}); start a new run.") from error
    calibration = load_calibration(
        config.calibration, load_tokenizer(checkpoint.path), config.samples, config.seq_len, config.answer_only,
        lambda samples: write_windows(
            checkpoint.path, config.device, samples, config.seq_len, config.seed, config.max_memory
        ),
    )  # fmt: skip
    tensors = {"ids": calibration.ids} | ({} if calibration.weights is None else {"weights": calibration.weights})
    uses = json.dumps([asdict(use) for use in calibration.sources])
    write_atomically(path, save(tensors, metadata={"sources": uses}))
    return calibration
