"""Faults of the machine, the disk and the files while a run is at work."""

from __future__ import annotations

import json
import os
import random
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from awq_engine.checkpoint import read_checkpoint
from awq_engine.errors import BadInputError, ExitCode
from awq_engine.events import EVENTS
from awq_engine.runs import Run
from tests.faults import arms
from tests.faults.bench import Bench, engine, files_of, last_message

Tried = Iterator[tuple[str, object, str | None]]
UNUSUAL = {
    "queued", "paused", "continued", "download_progress", "block_fell_back", "warned", "run_cancelled", "run_failed",
}  # fmt: skip
"""Kinds of events that an undisturbed run does not have."""


def deaths_at_events(bench: Bench, asked: Namespace) -> Tried:
    for kind in (name for name in EVENTS if name not in UNUSUAL):
        run = bench.new_run()
        code = engine(run, arms.killed_at(kind))
        yield "killed at an event", kind, bench.problem_after(run, code) if code == -9 else "the event never came"


def deaths_at_moments(bench: Bench, asked: Namespace) -> Tried:
    rng = random.Random(asked.seed)
    for _ in range(asked.moments):
        run, moment = bench.new_run(), rng.uniform(0, bench.seconds)
        yield "killed at a moment", f"{moment:.3f} s", bench.problem_after(run, engine(run, kill_after=moment))


def deaths_at_disk_steps(bench: Bench, asked: Namespace) -> Tried:
    """With a model to overwrite, which must be there whenever the new one is not."""
    for number, run, code in _at_steps(bench, asked, arms.die, bench.overwriting_run):
        yield "killed at a step to the disk", number, bench.problem_after(run, code)


def full_disks(bench: Bench, asked: Namespace) -> Tried:
    for number, run, code in _at_steps(bench, asked, arms.disk_full, bench.new_run, from_then_on=True):
        yield "disk full from a step on", number, bench.problem_after(run, code)


def broken_disks(bench: Bench, asked: Namespace) -> Tried:
    for number, run, code in _at_steps(bench, asked, arms.disk_broken, bench.new_run):
        yield "one step to the disk fails", number, bench.problem_after(run, code)


def _at_steps(
    bench: Bench, asked: Namespace, act: arms.Act, new_run: Callable[[], Run], *, from_then_on: bool = False
) -> Iterator[tuple[str, Run, int]]:
    """Engines with a fault at every step to the disk, or at `asked.steps` of them."""
    note = bench.root / "steps"
    assert engine(new_run(), arms.disk_steps_counted(note)) == 0
    total = int(note.read_text())
    some = min(asked.steps, total)
    for number in sorted({1 + index * total // some for index in range(some)}):
        run = new_run()
        code = engine(run, arms.at_disk_step(number, act, from_then_on=from_then_on))
        yield f"{number} of {total}", run, code


def bad_files(bench: Bench, asked: Namespace) -> Tried:
    for file in (*sorted(bench.model.iterdir()), bench.text):
        size = file.stat().st_size
        for after in (-1, 0, size // 2):
            run = bench.new_run()
            code = engine(run, arms.read_error_on(file, after))
            yield "read error", f"{file.name} after {after}", bench.problem_after(run, code)
        for kept in sorted({0, 1, 8, size // 2, size - 1}):
            run = bench.new_run()
            with _cut(file, kept):
                code = engine(run)
            yield "truncated input", f"{file.name} at {kept}", _after_cut(bench, run, code)
        for event in ("calibration_ready", "block_finished"):  # what the run began with is known by then
            run = bench.new_run()
            with _cut(file, 0) as cut:
                cut.undo()
                code = engine(run, arms.at_event(event, cut.do))
            yield "truncated under way", f"{file.name} at {event}", _after_cut(bench, run, code)


class _cut:  # noqa: N801 - a context manager
    """A file of which only the beginning is there."""

    def __init__(self, file: Path, kept: int) -> None:
        self._file, self._kept, self._whole, self._times = file, kept, file.read_bytes(), file.stat()

    def do(self) -> None:
        os.truncate(self._file, self._kept)

    def undo(self) -> None:
        self._file.write_bytes(self._whole)
        os.utime(self._file, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))

    def __enter__(self) -> _cut:
        self.do()
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def _after_cut(bench: Bench, run: Run, code: int) -> str | None:
    """Refused, or of no use to anybody (a README, a template); whole again, the run goes on where it was refused."""
    if code == 0:
        return None if read_checkpoint(Path(run.config().output)).tensors else "an output without tensors"
    return bench.problem_after(run, code)


def bad_machines(bench: Bench, asked: Namespace) -> Tried:
    for power in range(18, 30):
        run = bench.new_run()
        yield (
            "little memory",
            f"{1 << power} bytes",
            bench.problem_after(run, engine(run, arms.little_memory(1 << power))),
        )
    jumps: dict[str, Callable[[int], float]] = {
        "back and forth": lambda look: -3600.0 * (look % 2), "always back": lambda look: -60.0 * look,
        "years ahead": lambda look: 3e8 * (look > 9), "before 1970": lambda look: -2e9 * (look > 9),
    }  # fmt: skip
    for name, moves in jumps.items():
        run = bench.new_run()
        code = engine(run, arms.clock_that(moves))
        yield "clock jumps", name, "it stopped the run" if code else bench.problem_after(run, code)
        run = bench.new_run()
        code = engine(run, arms.both(arms.clock_that(moves), arms.killed_at("block_finished")))
        yield "clock jumps", f"{name}, then killed", bench.problem_after(run, code)


def full_devices(bench: Bench, asked: Namespace) -> Tried:
    """Halved batches give other last bits; a run that is killed after that goes on with the halved ones."""
    for call in (1, 2, 5, 8, 12):
        for most in (2, 1):
            whole, killed = bench.new_run(), bench.new_run()
            arm = arms.device_full_at(call, most)
            code = engine(whole, arm)
            engine(killed, arms.both(arm, arms.killed_at("block_finished")))
            yield "device full", f"{most} sequences fit from pass {call} on", _after_halving(whole, killed, code)
    run = bench.new_run()
    code = engine(run, arms.device_full_at(3, 0))
    told = code == ExitCode.NO_RESOURCES and "not enough memory" in last_message(run) and engine(run) == 0
    yield "device full", "nothing fits", None if told else f"ended with {code}: {last_message(run)}"


def _after_halving(whole: Run, killed: Run, code: int) -> str | None:
    if code or engine(killed):
        return f"ended with {code}: {last_message(whole)} {last_message(killed)}"
    same = files_of(Path(whole.config().output)) == files_of(Path(killed.config().output))
    return None if same else "the resumed run made other files"


def damaged_journals(bench: Bench, asked: Namespace) -> Tried:
    """Killed after the last block, then one line of the journal is unreadable, or it and all that follow are lost."""
    lines = len(_killed(bench).journal_path.read_bytes().split(b"\n"))
    for number in range(lines):
        for kind, damage in (("journal corrupted", _spoil), ("journal torn", _tear)):
            run = _killed(bench)
            found = run.journal_path.read_bytes().split(b"\n")
            run.journal_path.write_bytes(b"\n".join(damage(found, min(number, len(found) - 1))))
            yield kind, f"line {number + 1}", bench.problem_after(run, 0)
    run = _killed(bench)
    run.journal_path.unlink()
    yield "journal torn", "lost", bench.problem_after(run, 0)


def _killed(bench: Bench) -> Run:
    run = bench.new_run()
    assert engine(run, arms.killed_at("verified")) == -9
    return run


def _spoil(lines: list[bytes], number: int) -> list[bytes]:
    return [*lines[:number], lines[number][: len(lines[number]) // 2] + b"\x00\xff", *lines[number + 1 :]]


def _tear(lines: list[bytes], number: int) -> list[bytes]:
    return [*lines[:number], lines[number][: len(lines[number]) // 2]]


# --- versions ---------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def other_versions(bench: Bench, asked: Namespace) -> Tried:
    """What another version wrote is read, or refused with a sentence; either way it goes on when it is ours again."""
    newer: dict[str, Change] = {
        "schema 2": lambda data: data.update(version=2),
        "a setting that we do not know": lambda data: data["config"].update(colour="blue"),
        "a preset that we do not know": lambda data: data["config"].update(preset="extreme"),
    }
    for name, change in newer.items():
        yield "run of a newer version", name, _with_request(bench, change, refused=True)
    defaults = [key for key in json.loads(bench.new_run().file().dumps())["config"] if key not in _ASKED_FOR]
    for key in defaults:
        yield (
            "run of an older version",
            f"without {key}",
            _with_request(bench, lambda data, key=key: data["config"].pop(key), refused=False),
        )
    changes: dict[str, Change] = {
        "more in every line": lambda line: line.update(colour="blue"),
        "kinds that we do not know": lambda line: line.update(kind=f"{line['kind']}_2") if line["seq"] % 2 else None,
        "less in every line": _drop_last,
    }
    for name, change in changes.items():
        run = _killed(bench)
        lines = [json.loads(line) for line in run.journal_path.read_text().splitlines()]
        for line in lines:
            change(line)
        run.journal_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        yield "journal of another version", name, bench.problem_after(run, 0)
    run = _killed(bench)
    (run.path / "fingerprint.json").write_text(
        (run.path / "fingerprint.json").read_text().replace("awq-tui ", "awq-tui 9")
    )
    code = engine(run)
    said = last_message(run)
    yield "begun by another version", "of awq-tui", None if code == 2 and "upgraded" in said else f"{code} {said}"


def _drop_last(line: dict[str, Any]) -> None:
    line.pop(max(set(line) - {"kind", "seq", "time"}, default="time"))


_ASKED_FOR = {
    "model", "output", "group_size", "calibration", "samples", "seq_len", "preset", "threads", "device",
}  # fmt: skip
"""What the bench's runs do not leave at its default."""


def _with_request(bench: Bench, change: Change, *, refused: bool) -> str | None:
    run = bench.new_run()
    engine(run, arms.killed_at("block_finished"))
    file = run.path / "run.json"
    text = file.read_text()
    data = json.loads(text)
    change(data)
    file.write_text(json.dumps(data))
    try:
        run.file()
        said = ""
    except BadInputError as error:
        said = str(error)
    if bool(said) != refused:
        return said or "it was not refused"
    code = engine(run)
    if refused and code != ExitCode.BAD_INPUT:
        return f"the engine ended with {code}: {last_message(run)}"
    file.write_text(text)
    return bench.problem_after(run, code)
