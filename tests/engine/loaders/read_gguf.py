"""Run by the Python of another environment: what llama.cpp makes of a GGUF file.

    python read_gguf.py MODEL.gguf OUT.safetensors [TEXT]

OUT gets `ids` (3, 4, ... 34) and the `logits` for them; with a file TEXT also the `text_ids` it is read as.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from safetensors.numpy import save_file


def main(model: str, out: str, text: str = "") -> None:
    llama = Llama(model, n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    ids = np.arange(3, 35, dtype=np.int64)
    llama.eval(ids.tolist())
    found = {"ids": ids, "logits": np.array(llama.scores[: len(ids)], dtype=np.float32)}
    if text:
        tokens = llama.tokenize(Path(text).read_bytes(), add_bos=False, special=False)
        found["text_ids"] = np.array(tokens, dtype=np.int64)
    save_file(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
