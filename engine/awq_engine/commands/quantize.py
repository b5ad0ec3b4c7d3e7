"""`quantize`, `resume` and `watch`: start an engine or find one, follow its journal, print what came of it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from awq_engine.checkpoint import read_checkpoint
from awq_engine.commands.console import note, result, result_json
from awq_engine.commands.following import attend, look_on
from awq_engine.config import Format, Method, Preset, RunConfig, check_cluster
from awq_engine.errors import BadInputError, ExitCode, UsageError
from awq_engine.estimate import estimate, measured_speed
from awq_engine.format import UNKNOWN, duration, size
from awq_engine.memory import parse_size
from awq_engine.models import HubId, parse_model
from awq_engine.output import check_output, check_run, default_output
from awq_engine.paths import typed_path
from awq_engine.runs import Run, create_run, find_run, spawn_engine
from awq_engine.sanitize import one_line
from awq_engine.shapes import check_of
from awq_engine.state import RunState
from awq_engine.text_sources import absolute_mix


def quantize(args: argparse.Namespace) -> int:
    """Check everything that can be checked from here, then hand the work to a detached engine."""
    config = config_of(args)
    if args.dry_run:
        return _dry_run(config, args.json)
    check_before_start(config)
    run = create_run(config)
    engine = spawn_engine(run, queued=args.queue)
    if args.detach:
        return _detached(run, args.json)
    return _show(attend(run, engine), args.json)


def resume(args: argparse.Namespace) -> int:
    """Go on with a run that was paused or cancelled, failed or died."""
    run = find_run(args.run)
    if run.is_locked() and run.pause_requested():
        run.end_pause()
        note(f"Run {run.id} goes on; watch it with `awq-tui watch {run.id}`.")
        return ExitCode.OK
    status = run.status()
    if not status.resumable:
        hint = f"watch it with `awq-tui watch {run.id}`" if run.is_locked() else "there is nothing left to do"
        raise UsageError(f"Run {run.id} is {status}; {hint}.")
    engine = spawn_engine(run)
    return _detached(run, args.json) if args.detach else _show(attend(run, engine), args.json)


def watch(args: argparse.Namespace) -> int:
    """Follow a run that somebody started, or replay one that ended; ctrl-c leaves it alone."""
    return _show(look_on(find_run(args.run)), as_json=False)


def config_of(args: argparse.Namespace) -> RunConfig:
    """The request as the engine, which works in another folder, can read it: paths made absolute."""
    target = parse_model(args.model)
    method = Method(args.method)
    shape = {"bits": args.bits, "group_size": args.group_size, "symmetric": args.symmetric}
    layout = Format(args.format)
    default = default_output(target.name, method=method, layout=layout, target_bpw=args.target_bpw, **shape)
    output = typed_path(args.output) if args.output else default
    return RunConfig(
        model=args.model if isinstance(target, HubId) else str(target), output=str(output.absolute()),
        preset=Preset(args.preset), method=method, format=layout, samples=args.samples,
        calibration=absolute_mix(args.calibration), answer_only=args.answer_only, seq_len=args.seq_len,
        device=args.device, seed=args.seed, overwrite=args.overwrite, overrides=tuple(args.override),
        max_memory=parse_size(args.max_memory) if args.max_memory else 0, target_bpw=args.target_bpw,
        lm_head=args.lm_head, threads=args.threads, workers=args.workers, on=args.on, **shape,
    )  # fmt: skip


def check_before_start(config: RunConfig) -> None:
    """Raise what the headers of a local model and the disk already tell; a Hub model is checked once it is here."""
    check_cluster(config.on)
    target = parse_model(config.model)
    if isinstance(target, HubId):
        check_output(Path(config.output), None, config.overwrite)
        return
    checkpoint = read_checkpoint(target)
    forecast = estimate(checkpoint, config)
    if forecast.problems:
        raise BadInputError(" ".join(forecast.problems))
    check_run(config, checkpoint, forecast)


def _dry_run(config: RunConfig, as_json: bool) -> int:
    """Print the plan that the engine would follow; nothing is written."""
    check_before_start(config)
    from awq_engine.plan import describe

    plan = describe(config)
    speed = measured_speed(config.device)
    if speed is not None and not isinstance(target := parse_model(config.model), HubId):
        plan["seconds"] = estimate(read_checkpoint(target), config, speed).seconds
    if as_json:
        result_json(plan)
    else:
        result(describe_plan(plan, speed.source if speed else "a guess, no run has finished here yet"))
    return ExitCode.OK


def describe_plan(plan: dict[str, Any], time_source: str) -> str:
    """A plan, as `plan.describe` gives it, for people."""
    reasons: dict[str, int] = {}
    for _, reason in plan["skipped"]:
        reasons[reason] = reasons.get(reason, 0) + 1
    lines = [
        f"model      {plan['model']}  ({plan['model_type']}, {plan['parameters']} parameters)",
        f"quantize   {len(plan['linears'])} linears in {_units(plan)}: {_specs(plan['linears'])}",
        *(f"keep       {number} linears: {reason}" for reason, number in reasons.items()),
        f"size       {size(plan['bytes_before'])} -> {size(plan['bytes_after'])}, "
        f"{plan['bits_per_weight']:.2f} bits per weight",
        f"memory     about {size(plan['peak_host_bytes'])} of host memory",
        f"time       about {duration(plan['seconds'])} ({time_source})",
        f"output     {plan['output']}",
        *(f"warning    {warning}" for warning in plan["warnings"]),
    ]
    return "\n".join(map(one_line, lines))


def _units(plan: dict[str, Any]) -> str:
    """`32 blocks`, or with the head, which comes after the last block."""
    head = any(linear["block"] == plan["n_blocks"] for linear in plan["linears"])
    return f"{plan['n_blocks']} blocks{' and the head' if head else ''}"


def _specs(linears: list[dict[str, Any]]) -> str:
    """`4 bits in groups of 128`, or how many linears have which."""
    counts = Counter((linear["bits"], linear["group_size"]) for linear in linears)
    words = {spec: f"{spec[0]} bits in {_groups(spec[1])}" for spec in counts}
    if len(counts) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{number} with {words[spec]}" for spec, number in counts.most_common())


def _groups(group_size: int) -> str:
    return "whole rows" if group_size == -1 else f"groups of {group_size}"


def _detached(run: Run, as_json: bool) -> int:
    if as_json:
        result_json({"run_id": run.id, "output": run.config().output})
    else:
        note(f"The engine works on; follow it with `awq-tui watch {run.id}`.")
        result(run.id)
    return ExitCode.OK


def _show(state: RunState, as_json: bool) -> int:
    """Print the result of a finished run."""
    data = state.result or {}
    if as_json:
        result_json(data)
    else:
        result(describe_result(data))
    return ExitCode.OK


def describe_result(data: dict[str, Any]) -> str:
    """What `quantize --json` reports, for people; other versions may report less."""
    known = {key: value for key, value in data.items() if check_of(float)(value)}
    bits, peak = known.get("bits_per_weight"), known.get("peak_device_bytes")
    counts = ", ".join(f"{data.get(name, UNKNOWN)} {name}" for name in ("blocks", "folds", "fallbacks"))
    memory = f"peak memory {size(known.get('peak_host_bytes'))}{f' and {size(peak)} on the device' if peak else ''}"
    lines = [
        str(data.get("output", "")),
        f"{size(known.get('bytes_before'))} -> {size(known.get('bytes_after'))}, "
        f"{UNKNOWN if bits is None else f'{bits:.2f}'} bits per weight",
        f"{counts}, {duration(known.get('seconds'))}, {memory}",
        f"run {data.get('run_id', '')}",
    ]
    return "\n".join(map(one_line, lines))
