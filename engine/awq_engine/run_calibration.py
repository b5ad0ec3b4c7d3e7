"""The calibration tokens of a run: made once, kept in the run directory, the same for every engine process."""

from __future__ import annotations

import json

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from awq_engine.calibration import Calibration, load_calibration
from awq_engine.checkpoint import Checkpoint
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError
from awq_engine.runs import Run, write_atomically
from awq_engine.runtime import load_tokenizer


def run_calibration(run: Run, config: RunConfig, checkpoint: Checkpoint) -> Calibration:
    """The run's token ids, from its directory if an earlier process made them.

    Raises `BadInputError` for text that cannot be used, or is too short.
    """
    path = run.path / "calibration.safetensors"
    if path.exists():
        try:
            with safe_open(str(path), "pt") as file:
                return Calibration(ids=file.get_tensor("ids"), **json.loads(file.metadata()["calibration"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{path} is damaged ({error}); start a new run.") from error
    tokenizer = load_tokenizer(checkpoint.path)
    calibration = load_calibration(config.calibration, tokenizer, config.samples, config.seq_len)
    about = {name: getattr(calibration, name) for name in ("source", "tokens", "dropped_tokens", "detail")}
    write_atomically(path, save({"ids": calibration.ids}, metadata={"calibration": json.dumps(about)}))
    return calibration
