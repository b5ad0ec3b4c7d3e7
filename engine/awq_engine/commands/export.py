"""`export`: a quantized model for another runtime: llama.cpp or MLX."""

from __future__ import annotations

import argparse

from awq_engine.commands.console import phases, result, result_json
from awq_engine.errors import ExitCode
from awq_engine.exports.exported import Exported
from awq_engine.exports.gguf_file import export_gguf
from awq_engine.exports.mlx_folder import export_mlx
from awq_engine.format import size
from awq_engine.models import resolve_model
from awq_engine.paths import typed_path

EXPORTS = {"gguf": export_gguf, "mlx": export_mlx}


def export_model(args: argparse.Namespace) -> int:
    """Export and say where the result is; exit code 2 when the runtime cannot hold the model."""
    model = resolve_model(args.model)
    default = f"{model.path.name}.gguf" if args.to == "gguf" else f"{model.path.name}-mlx"
    output = typed_path(str(args.output or default)).absolute()
    done = EXPORTS[args.to](model.path, output, overwrite=args.overwrite, progress=phases())
    if args.json:
        result_json(done.to_json())
    else:
        result(_words(done))
    return ExitCode.OK


def _words(done: Exported) -> str:
    kinds = ", ".join(f"{count} linears as {kind}" for kind, count in done.linears.items())
    lines = [str(done.output), f"{kinds}; {size(done.nbytes)}"]
    if count := len(done.requantized):
        lines.append(f"{count} of them rounded anew, as no block holds their integers (first {done.requantized[0]})")
    return "\n".join(lines)
