"""How much of a model's quality does each recipe keep at the same size?

    python -m benchmarks.quality MODEL [--group-size 128] [--recipes rtn,fast,balanced,best]
        [--calibration SPEC] [--text SPEC] [--samples 16] [--seq-len 512] [--tokens 30720]

Each recipe quantizes the model in an engine process of its own (so that CPU time and peak memory are its own), and is
then compared with the original on held-out text. All recipes of one call see the same calibration tokens and windows.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from awq_engine.config import Method, Preset, RunConfig
from awq_engine.evaluate import evaluate
from awq_engine.models import resolve_model
from awq_engine.runs import create_run, spawn_engine
from awq_engine.state import replay
from benchmarks.results_file import append_rows

RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"method": Method.RTN, "preset": Preset.FAST},
    **{preset.value: {"preset": preset} for preset in Preset},
}


def measure(options: argparse.Namespace, recipe: str, folder: Path) -> dict[str, Any]:
    """Quantize with one recipe and evaluate: one row of figures."""
    model = resolve_model(options.model)
    config = RunConfig(
        model=str(model.path), output=str(folder / recipe), group_size=options.group_size, samples=options.samples,
        seq_len=options.seq_len, calibration=options.calibration, threads=options.threads, **RECIPES[recipe],
    )  # fmt: skip
    run = create_run(config)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = spawn_engine(run).wait()
    wall, user = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    state = replay(run.records())
    if code or state.result is None:
        raise SystemExit(state.error.message if state.error else f"the engine failed; see {run.log_path}")
    found = evaluate(
        Path(config.output), against=model.path, text=options.text, seq_len=options.seq_len, max_tokens=options.tokens
    )
    return {
        "model": model.name, "recipe": recipe, "bits": config.bits, "group_size": config.group_size,
        "calibration": Path(options.calibration).name, "samples": options.samples, "seq_len": options.seq_len,
        "text": Path(options.text).name, "tokens": found.tokens, "nll_original": f"{found.nll_original:.5f}",
        "nll": f"{found.nll:.5f}", "kl": f"{found.kl:.5f}", "kl_error": f"{found.kl_error or 0:.5f}",
        "top1_agreement": f"{found.top1_agreement:.4f}", "wall_s": f"{wall:.1f}", "user_cpu_s": f"{user:.1f}",
        "peak_host_mb": round(state.result["peak_host_bytes"] / 1e6), "threads": options.threads,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=30720)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes.split(","):
            row = measure(options, recipe, Path(folder))
            append_rows("quality", [row])
            print(
                {key: row[key] for key in ("model", "recipe", "kl", "kl_error", "top1_agreement", "user_cpu_s")},
                flush=True,
            )


if __name__ == "__main__":
    main()
