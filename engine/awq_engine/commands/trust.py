"""`trust`: look at the Python code that a model brings along, and allow it to run, or not any more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from awq_engine.commands.console import note, result, result_json, table
from awq_engine.errors import BadInputError, ExitCode, UsageError
from awq_engine.models import HubId, fetch_code, parse_model
from awq_engine.own_code import OwnCode, allow, code_elsewhere, is_trusted, own_code, withdraw

SHORTEST_DIGEST = 12


def trust(args: argparse.Namespace) -> int:
    """Show every file; keep an agreement that was typed or given as the digest of the list."""
    model = parse_model(args.model)
    folder = fetch_code(model) if isinstance(model, HubId) else model
    code = own_code(folder)
    if not code.files:
        raise BadInputError(f"{folder} has no Python code; there is nothing to allow.")
    if elsewhere := code_elsewhere(folder):
        raise BadInputError(
            f"{folder} has code from elsewhere than the folder itself, never run: {', '.join(elsewhere[:3])}."
        )
    if args.withdraw:
        note("It is not allowed any more." if withdraw(code) else "It had not been allowed.")
    elif not is_trusted(folder):
        note(_words(folder, code))
        _ask(code, args.allow)
        allow(code)
    trusted = is_trusted(folder)
    if args.json:
        result_json({"repository": code.repository, "commit": code.commit, "files": code.files, "digest": code.digest,
                     "allowed": trusted})  # fmt: skip
    elif trusted:
        result(f"Allowed: {len(code.files)} files, {code.digest[:SHORTEST_DIGEST]}")
    return ExitCode.OK


def _words(folder: Path, code: OwnCode) -> str:
    origin = f"repository {code.repository}, commit {code.commit}" if code.repository else f"folder {folder}"
    rows = [(name, digest, f"{(folder / name).stat().st_size}") for name, digest in code.files.items()]
    return (
        f"{origin}\n{table(('file', 'SHA-256', 'bytes'), rows, right='bytes')}\nDigest of the list: {code.digest}\n"
        f"Whenever the model is loaded this code does what it likes with all that is yours: read it first, in {folder}."
    )


def _ask(code: OwnCode, given: str) -> None:
    if given:
        if len(given) < SHORTEST_DIGEST or not code.digest.startswith(given):
            raise UsageError(f"Not allowed: --allow wants the digest of this very code, {code.digest}.")
        return
    if not sys.stdin.isatty():
        raise UsageError(f"Not allowed: nobody is there to agree. Read the code, then add --allow {code.digest}.")
    sys.stderr.write("Allow exactly this code to run? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("Not allowed.")
