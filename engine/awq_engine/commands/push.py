"""`push`: put a quantized model on the Hub, after showing what would go there."""

from __future__ import annotations

import argparse
import sys

from awq_engine.commands.console import note, result, result_json, table
from awq_engine.errors import ExitCode, UsageError
from awq_engine.format import size
from awq_engine.models import HubId, parse_model
from awq_engine.push import PushPlan, plan_push, push
from awq_engine.sanitize import one_line


def push_model(args: argparse.Namespace) -> int:
    """List every file and byte; push them when somebody agrees. Exit code 4 when the Hub refuses."""
    folder = parse_model(args.model)
    if isinstance(folder, HubId):
        raise UsageError(f"{args.model} is on the Hub already; give a run id or a folder.")
    plan = plan_push(folder, args.repo, private=not args.public)
    if args.dry_run:
        result_json(plan.to_json()) if args.json else result(_words(plan))
        return ExitCode.OK
    if not args.yes:
        note(_words(plan))
        _ask(plan)
    address = push(plan)
    result_json(plan.to_json() | {"commit": address}) if args.json else result(one_line(address))
    return ExitCode.OK


def _words(plan: PushPlan) -> str:
    rows = [(name, f"{nbytes}") for name, nbytes in plan.files.items()]
    lines = [table(("file", "bytes"), rows, right="bytes")]
    if plan.left_out:
        lines.append(f"stays here: {', '.join(map(one_line, plan.left_out))}")
    lines.append(f"{len(rows)} files, {size(plan.nbytes)}, to the {_kind(plan)} repository {plan.repo}")
    return "\n".join(lines)


def _ask(plan: PushPlan) -> None:
    if not sys.stdin.isatty():
        raise UsageError("Nothing was sent: nobody is there to agree. Look at it with --dry-run, then add --yes.")
    sys.stderr.write(f"Send this to {plan.repo}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was sent.")


def _kind(plan: PushPlan) -> str:
    return "private" if plan.private else "public"
