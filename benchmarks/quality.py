"""How much of a model's quality does each recipe keep at the same size?

    python -m benchmarks.quality MODEL [--group-size 128] [--bits 4] [--recipes rtn,fast,balanced,best]
        [--calibration SPEC,SPEC] [--text SPEC,SPEC] [--samples 16] [--seq-len 512] [--tokens 30720] [--format awq]

What `awq-tui compare` does, with nothing taken from earlier runs, CPU seconds beside the wall time, and a row in
`benchmarks/results/quality.csv` for each recipe, calibration and text it is judged on. All recipes of one call see the
same calibration tokens and windows.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from awq_engine.commands.compare import measure
from awq_engine.comparison import Entry, entries
from awq_engine.config import Format, RunConfig
from awq_engine.evaluations import evaluation_settings
from awq_engine.models import ResolvedModel, resolve_model
from awq_engine.text_sources import absolute_mix, absolute_spec
from benchmarks.results_file import append_rows


def rows_of(entry: Entry, model: ResolvedModel, texts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Quantize with one recipe and evaluate on each of `texts` (settings): one row of figures each."""
    config = entry.config
    before = _children_seconds()
    for settings in texts:
        line, found = measure(entry, model, settings, keep=True)
        yield {
            "model": model.name, "recipe": entry.recipe, "bits": config.bits, "group_size": config.group_size,
            "calibration": Path(config.calibration).name, "samples": config.samples, "seq_len": config.seq_len,
            "text": Path(settings["text"]).name, "tokens": found["tokens"],
            "nll_original": f"{found['nll_original']:.5f}", "nll": f"{found['nll']:.5f}", "kl": f"{line.kl:.5f}",
            "kl_error": f"{line.kl_error or 0:.5f}", "top1_agreement": f"{line.top1_agreement:.4f}",
            "wall_s": f"{line.seconds:.1f}", "user_cpu_s": f"{_children_seconds() - before:.1f}",
            "peak_host_mb": round(line.peak_host_bytes / 1e6), "threads": config.threads,
        }  # fmt: skip


def _children_seconds() -> float:
    """CPU seconds that engines have used so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipes", default="rtn,fast,balanced,best")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=30720)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", default=Format.AWQ.value, choices=[each.value for each in Format])
    options = parser.parse_args()
    model = resolve_model(options.model)
    texts = [
        evaluation_settings(absolute_spec(text), options.seq_len, options.tokens, "auto")
        for text in options.text.split(",")
    ]
    for number, calibration in enumerate(options.calibration.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AWQ_TUI_HOME"] = str(Path(folder) / "home")
            base = RunConfig(
                model=str(model.path), output=folder, samples=options.samples, seq_len=options.seq_len,
                calibration=absolute_mix(calibration), threads=options.threads, format=Format(options.format),
            )  # fmt: skip
            recipes = [name for name in options.recipes.split(",") if number == 0 or name != "rtn"]
            for entry in entries(base, recipes, [options.bits], [options.group_size]):
                for row in rows_of(entry, model, texts):
                    append_rows("quality", [row])
                    words = ("model", "recipe", "calibration", "text", "kl", "kl_error", "top1_agreement", "user_cpu_s")
                    print({key: row[key] for key in words}, flush=True)


if __name__ == "__main__":
    main()
