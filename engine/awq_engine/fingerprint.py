"""What a run was started on, so that resuming on anything else is refused instead of mixing two models.

Written once, when the run's first engine process has read its inputs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from awq_engine.calibration import Calibration
from awq_engine.checkpoint import Checkpoint
from awq_engine.errors import BadInputError
from awq_engine.runs import Run
from awq_engine.storage import write_atomically


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of everything that decides the output's bytes."""

    model: str
    """Of `config.json`, and of every shard's tensors by name, dtype, shape, place and file size and time."""
    calibration: str
    """Of the token ids and their weights."""
    engine: str
    """Versions of awq-tui and torch."""
    device: str
    """What it ran on: other hardware sums in another order."""
    threads: int
    """CPU threads: sums in another order are other bits."""


_CHANGES = {
    "model": "the model's files changed",
    "calibration": "its calibration tokens changed",
    "engine": "awq-tui, torch or transformers was upgraded",
    "device": "the device changed",
    "threads": "the number of CPU threads changed",
}


def take_fingerprint(checkpoint: Checkpoint, calibration: Calibration, device: torch.device) -> Fingerprint:
    """Hash the inputs of a run on `device`."""
    digest = hashlib.sha256(calibration.ids.contiguous().numpy().tobytes())
    if calibration.weights is not None:
        digest.update(calibration.weights.contiguous().numpy().tobytes())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Fingerprint(model_hash(checkpoint), digest.hexdigest(), _engine_versions(), where, torch.get_num_threads())


def began_with(run: Run, checkpoint: Checkpoint) -> bool:
    """Whether the run would start on the same model files and engine today; a run that has not read them yet would."""
    stored = _read(run.path / "fingerprint.json")
    return stored is None or (stored.get("model"), stored.get("engine")) == (model_hash(checkpoint), _engine_versions())


def _engine_versions() -> str:
    return f"awq-tui {version('awq-tui')}, torch {torch.__version__}, transformers {version('transformers')}"


def model_hash(checkpoint: Checkpoint) -> str:
    """A hash that changes when the model's files do, without reading gigabytes."""
    digest = hashlib.sha256((checkpoint.path / "config.json").read_bytes())
    for name, tensor in checkpoint.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.start}".encode())
    for file in sorted({tensor.file for tensor in checkpoint.tensors.values()}):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def check_fingerprint(run: Run, now: Fingerprint) -> None:
    """Store the fingerprint of a new run; refuse a resumed one whose inputs changed (`BadInputError` says which)."""
    path = run.path / "fingerprint.json"
    stored = _read(path)
    if stored is None:
        write_atomically(path, (json.dumps(asdict(now), indent=2) + "\n").encode())
        return
    changed = [text for key, text in _CHANGES.items() if stored.get(key) != asdict(now)[key]]
    if changed:
        raise BadInputError(
            f"Run {run.id} cannot go on where it stopped: {' and '.join(changed)} since it started. Start a new run."
        )


def stored_threads(run: Run) -> int | None:
    """The number of CPU threads the run started with, or None for a new run."""
    stored = _read(run.path / "fingerprint.json")
    return int(str(stored["threads"])) if stored else None


def _read(path: Path) -> dict[str, object] | None:
    try:
        data = json.loads(path.read_bytes())
        return data if isinstance(data, dict) and isinstance(data.get("threads"), int) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read ({error}); start a new run.") from error
