"""Run by the Python of another environment: what mlx-lm makes of a model folder, computing in float32.

    python read_mlx.py MODEL OUT.safetensors

OUT gets `ids` (3, 4, ... 34) and the `logits` for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from safetensors.numpy import save_file


def main(folder: str, out: str) -> None:
    model, _ = load_model(Path(folder))
    model.set_dtype(mx.float32)
    ids = np.arange(3, 35, dtype=np.int64)
    logits = model(mx.array(ids.tolist())[None])[0].astype(mx.float32)
    save_file({"ids": ids, "logits": np.array(logits)}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
