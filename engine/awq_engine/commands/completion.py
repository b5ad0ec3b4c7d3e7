"""`completion`: what a shell needs to complete our commands, options and files."""

from __future__ import annotations

import argparse

import shtab

from awq_engine.commands.console import result
from awq_engine.errors import ExitCode


def show_completion(args: argparse.Namespace) -> int:
    """Print the script for one shell."""
    from awq_engine.cli import build_parser

    result(shtab.complete(build_parser(), args.shell))
    return ExitCode.OK
