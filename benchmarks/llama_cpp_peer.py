"""llama.cpp as a process to be timed beside ours: `benchmarks.decode` starts it, in an environment of its own.

    python llama_cpp_peer.py FILE.gguf THREADS          writes `ready`, then for each line N of standard input the
                                                        seconds that each of N tokens took after a short prompt
    python llama_cpp_peer.py FILE.gguf --write SHAPE TYPE       random weights of SHAPE (JSON), rounded to TYPE

Needs llama-cpp-python and gguf, nothing of this project. Weights are random and there is no vocabulary: it is timed and
not listened to.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]
import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

PROMPT = list(range(3, 19))
CONTEXT = 1024


def write(file: Path, shape: dict[str, int], kind: str) -> None:
    """First in float16, then rounded by llama.cpp itself, the output head as it does by default."""
    floats = file.with_suffix(".f16.gguf")
    _write_floats(floats, shape)
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread = 1
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(floats).encode(), str(file).encode(), options):
        raise SystemExit(f"llama.cpp could not round to {kind}")
    floats.unlink()


def _write_floats(file: Path, shape: dict[str, int]) -> None:
    writer = gguf.GGUFWriter(str(file), "llama", use_temp_file=True)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["blocks"])
    writer.add_feed_forward_length(shape["mlp"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_vocab_size(shape["vocabulary"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)
    for name, size in _tensors(shape):
        spread = (2 * size[-1]) ** -0.5
        tensor = random.standard_normal(size, dtype=np.float32) * np.float32(spread)
        writer.add_tensor(name, tensor.astype(np.float16) if len(size) == 2 else np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(shape: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    hidden, mlp, vocabulary = shape["hidden"], shape["mlp"], shape["vocabulary"]
    kv = hidden * shape["kv_heads"] // shape["heads"]
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden), "ffn_norm": (hidden,), "ffn_gate": (mlp, hidden), "ffn_up": (mlp, hidden),
        "ffn_down": (hidden, mlp),
    }  # fmt: skip
    outer = [
        ("token_embd.weight", (vocabulary, hidden)),
        ("output_norm.weight", (hidden,)),
        ("output.weight", (vocabulary, hidden)),
    ]
    return outer + [(f"blk.{n}.{name}.weight", size) for n in range(shape["blocks"]) for name, size in block.items()]


def serve(file: Path, threads: int) -> None:
    model: Any = llama_cpp.Llama(
        str(file), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=False
    )
    print("ready", flush=True)
    for line in sys.stdin:
        model.reset()
        model.eval(PROMPT)
        token, started = 5, time.perf_counter()
        for _ in range(int(line)):
            model.eval([token])
            token = model.sample(temp=0.0)
        print((time.perf_counter() - started) / int(line), flush=True)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    if sys.argv[2] == "--write":
        write(path, json.loads(sys.argv[3]), sys.argv[4])
    else:
        serve(path, int(sys.argv[2]))
