"""`convert`: a quantized model in another format, without rounding anything."""

from __future__ import annotations

import argparse

from awq_engine.commands.console import phases, result, result_json
from awq_engine.convert import convert
from awq_engine.errors import ExitCode
from awq_engine.format import size
from awq_engine.formats.limits import Format
from awq_engine.models import resolve_model
from awq_engine.paths import typed_path


def convert_model(args: argparse.Namespace) -> int:
    """Convert and say where the result is; exit code 2 when the format cannot hold the model exactly."""
    source = resolve_model(args.model).path
    output = typed_path(args.output).absolute()
    done = convert(source, output, Format(args.format), overwrite=args.overwrite, progress=phases())
    if args.json:
        result_json(done.to_json())
    else:
        sizes = f"{size(done.bytes_before)} to {size(done.bytes_after)}"
        result(f"{done.output}\n{done.linears} linears in the format {done.layout}, bit for bit; {sizes}")
    return ExitCode.OK
