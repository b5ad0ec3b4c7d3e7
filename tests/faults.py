"""Breaks runs on purpose and looks at what is left: `python -m tests.faults [KIND ...] [--moments N] [--writes N]`.

One process imports torch and forks every engine, so that a death costs a second. After each fault the run is resumed
without it. A fault is survived when the engine ended as it should (killed, or with one of our exit codes and a sentence
in the journal), nothing incomplete stands under the output's name, and the resumed run's files are byte for byte those
of a run that nothing happened to, with nothing left beside them.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import awq_engine.pipeline  # noqa: F401  imported before forking, so that children start at once
from awq_engine import worker
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Preset, RunConfig
from awq_engine.events import EVENTS, Event, RunFailed
from awq_engine.journal import Journal
from awq_engine.runs import Run, RunStatus, create_run
from tests.engine.tiny_model import write_tiny_model

TEXT = "The cat sat on the mat and looked at the rain. Nobody knew why the door was open. "
RARE = {"queued", "download_progress", "block_fell_back", "warned", "run_cancelled", "run_failed"}
"""Kinds of events that the run here does not have."""
OURS = {1: "bug", 2: "bad input", 3: "no resources", 4: "network", 130: "interrupted"}
Arm = Callable[[Run], None]


@dataclass
class Figures:
    """What was tried, by kind of fault, and what did not survive."""

    tried: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, kind: str, problem: str | None, detail: object) -> None:
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if problem:
            self.failures.append(f"{kind} ({detail}): {problem}")


class Bench:
    """Runs on one tiny model, each with an output folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = write_tiny_model(root / "model")
        (root / "text.txt").write_text(TEXT * 60)
        self.config = RunConfig(
            str(self.model), str(root / "out"), group_size=32, calibration=str(root / "text.txt"), samples=4,
            seq_len=64, preset=Preset.FAST, threads=1, device="cpu",
        )  # fmt: skip
        started = time.perf_counter()
        run = self.new_run()
        assert engine(run) == 0
        self.seconds = time.perf_counter() - started
        self.expected = files_of(Path(run.config().output))

    def new_run(self, **changes: Any) -> Run:
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix="place-"))
        return create_run(replace(self.config, output=str(folder / "out"), **changes))

    def problem_after(self, run: Run, code: int) -> str | None:
        """What is wrong after a fault that ended the engine with `code`; resumes the run."""
        output = Path(run.config().output)
        if code > 0 and (said := self._silence(run, code)):
            return said
        if output.exists() and files_of(output) != self.expected:
            return "an incomplete output under its final name"
        if (again := engine(run)) != 0:
            return f"resuming ended with {again}: {last_message(run)}"
        if run.status() is not RunStatus.DONE or files_of(output) != self.expected:
            return "the resumed run made other files"
        left = sorted(path.name for path in output.parent.iterdir() if path != output)
        return f"left behind: {left}" if left else None

    def _silence(self, run: Run, code: int) -> str | None:
        if code == 1 or code not in OURS:
            return f"ended with exit code {code}: {last_message(run)}"
        return None if last_message(run) or code == 3 else "no message in the journal"  # a full disk holds no message


def files_of(output: Path) -> dict[str, str]:
    """Name -> hash of everything a reader of the model opens."""
    names = [*output.glob("*.safetensors*"), *output.glob("*.json")]
    kept = [file for file in names if file.name != "quantization_report.json"]  # it has times in it
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def last_message(run: Run) -> str:
    found = [record.event.message for record in run.records() if isinstance(record.event, RunFailed)]
    return found[-1] if found else ""


def engine(run: Run, arm: Arm | None = None, kill_after: float | None = None) -> int:
    """Fork an engine; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        log = os.open(run.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        lock = run.take_lock()
        if arm:
            arm(run)
        os._exit(worker.main([str(run.path), str(lock)]))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- faults -----------------------------------------------------------------------------------------------------------


def killed_at(kind: str) -> Arm:
    """Dead the moment an event of this kind is in the journal."""

    def arm(run: Run) -> None:
        append = Journal.__call__

        def append_and_die(self: Journal, event: Event) -> None:
            append(self, event)
            if event.kind() == kind:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.__call__ = append_and_die  # type: ignore[method-assign]

    return arm


class _Failing:
    """A file whose writes are counted, and fail once the disk is full."""

    def __init__(self, stream: Any, spend: Callable[[], None]) -> None:
        self._stream, self._spend = stream, spend

    def write(self, data: Any) -> Any:
        self._spend()
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def disk_full_after(writes: int, count: Path | None = None) -> Arm:
    """Every write after the first so many finds no space; with `count`, how many there were is noted there instead."""

    def arm(run: Run) -> None:
        opened, send, done = io.open, os.sendfile, 0

        def spend() -> None:
            nonlocal done
            done += 1
            if count is not None:
                descriptor = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(descriptor, str(done).encode())
                os.close(descriptor)
            elif done > writes:
                raise OSError(errno.ENOSPC, "No space left on device")

        def failing_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = opened(file, mode, *rest, **options)
            return _Failing(stream, spend) if set(mode) & set("wax+") else stream

        def failing_send(*arguments: Any) -> int:
            spend()
            return send(*arguments)

        io.open = builtins.open = failing_open  # type: ignore[assignment]
        os.sendfile = failing_send  # type: ignore[assignment]

    return arm


def read_error_on(name: str) -> Arm:
    """Opening this file of the model ends in an input/output error."""

    def arm(run: Run) -> None:
        opened = io.open

        def failing_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if str(file).endswith(f"/{name}") and "/model/" in str(file):
                raise OSError(errno.EIO, "Input/output error", str(file))
            return opened(file, mode, *rest, **options)

        io.open = builtins.open = failing_open  # type: ignore[assignment]

    return arm


def little_memory(extra: int) -> Arm:
    def arm(run: Run) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + extra,) * 2)

    return arm


def clock_jumps(run: Run) -> None:
    """Back an hour at every other look."""
    real, looks = time.time, iter(range(10**9))
    time.time = lambda: real() - 3600 * (next(looks) % 2)


Tried = Iterator[tuple[str, object, str | None]]
"""Kind, detail and problem of every fault."""


def deaths_at_events(bench: Bench, asked: argparse.Namespace) -> Tried:
    for kind in (name for name in EVENTS if name not in RARE):
        run = bench.new_run()
        yield "killed at an event", kind, bench.problem_after(run, engine(run, killed_at(kind)))


def deaths_at_moments(bench: Bench, asked: argparse.Namespace) -> Tried:
    rng = random.Random(asked.seed)
    for _ in range(asked.moments):
        run, moment = bench.new_run(), rng.uniform(0, bench.seconds)
        yield "killed at a moment", f"{moment:.3f} s", bench.problem_after(run, engine(run, kill_after=moment))


def full_disks(bench: Bench, asked: argparse.Namespace) -> Tried:
    counted = bench.root / "counted"
    assert engine(bench.new_run(), disk_full_after(0, counted)) == 0
    total = int(counted.read_text())
    some = min(asked.writes, total)
    for after in sorted({number * total // some for number in range(some)}):
        run = bench.new_run()
        code = engine(run, disk_full_after(after))
        yield "disk full", f"after {after} of {total} writes", bench.problem_after(run, code)


def bad_files(bench: Bench, asked: argparse.Namespace) -> Tried:
    for file in sorted(path.name for path in bench.model.iterdir()):
        run = bench.new_run()
        yield "read error", file, bench.problem_after(run, engine(run, read_error_on(file)))
        yield "truncated input", file, _truncated(bench, file)


def bad_machines(bench: Bench, asked: argparse.Namespace) -> Tried:
    for extra in (1 << 20, 4 << 20, 16 << 20, 64 << 20):
        run = bench.new_run()
        yield "little memory", extra, bench.problem_after(run, engine(run, little_memory(extra)))
    run = bench.new_run()
    yield "clock jumps", "back and forth", bench.problem_after(run, engine(run, clock_jumps))


def _truncated(bench: Bench, name: str) -> str | None:
    """A file cut in half: refused with a sentence, or of no use to anybody; whole again, the run goes on."""
    file = bench.model / name
    whole, times = file.read_bytes(), file.stat()
    file.write_bytes(whole[: len(whole) // 2])
    try:
        run = bench.new_run()
        code = engine(run)
    finally:
        file.write_bytes(whole)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    if code == 0:
        return None if read_checkpoint(Path(run.config().output)).tensors else "an output without tensors"
    return bench.problem_after(run, code)


def corrupted_journals(bench: Bench, asked: argparse.Namespace) -> Tried:
    """Killed after the last block, then one line of the journal is made unreadable, or half of it goes."""
    run = bench.new_run()
    engine(run, killed_at("block_finished"))
    lines = run.journal_path.read_bytes().split(b"\n")
    for number in range(len(lines)):
        run = bench.new_run()
        engine(run, killed_at("block_finished"))
        found = run.journal_path.read_bytes().split(b"\n")
        number = min(number, len(found) - 1)
        found[number] = found[number][: len(found[number]) // 2] + b"\x00\xff"
        run.journal_path.write_bytes(b"\n".join(found))
        yield "journal corrupted", f"line {number + 1}", bench.problem_after(run, 0)


KINDS = {
    "events": deaths_at_events, "moments": deaths_at_moments, "disk": full_disks, "files": bad_files,
    "machine": bad_machines, "journal": corrupted_journals,
}  # fmt: skip


def run_all(asked: argparse.Namespace) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["AWQ_TUI_HOME"] = str(Path(folder) / "home")
        bench = Bench(Path(folder))
        for name in asked.kinds:
            for kind, detail, problem in KINDS[name](bench, asked):
                figures.count(kind, problem, detail)
                if problem:
                    print(f"  {kind} ({detail}): {problem}", flush=True)
    return figures


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    options.add_argument("--moments", type=int, default=100)
    options.add_argument("--writes", type=int, default=1000, help="at most; every one if there are fewer")
    options.add_argument("--seed", type=int, default=0)
    figures = run_all(options.parse_args(arguments))
    for kind, tried in figures.tried.items():
        failed = sum(text.startswith(f"{kind} (") for text in figures.failures)
        print(f"{kind:<22} tried {tried:>4}  survived {tried - failed:>4}")
    tried = sum(figures.tried.values())
    print(f"{tried} faults tried, {tried - len(figures.failures)} survived")
    return min(len(figures.failures), 1)


if __name__ == "__main__":
    sys.exit(main())
