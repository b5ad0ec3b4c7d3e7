"""`doctor`: what this machine can do, and why a backend is chosen."""

from __future__ import annotations

import argparse

from awq_engine.commands.console import result, result_json
from awq_engine.doctor import doctor, render
from awq_engine.errors import ExitCode


def show_doctor(args: argparse.Namespace) -> int:
    """Print the report."""
    report = doctor()
    if args.json:
        result_json(report)
    else:
        result(render(report))
    return ExitCode.OK
