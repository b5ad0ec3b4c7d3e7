"""Tries damaged inputs on every parser: `python -m tests.fuzz.harness [--inputs N] [--seed N] [--only NAME]`.

An input passes when its parser returns or raises one of our errors with a sentence. Any other exception, more than
`SECONDS`, more than `MEMORY` bytes and a file opened for writing outside the parser's folder are defects. Where a
parser is `guided`, an input that reaches lines of ours that no other reached is kept and damaged further.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from awq_engine.errors import AwqError
from tests.fuzz.mutators import crossed
from tests.fuzz.parsers import PARSERS, Parser

SECONDS = 10.0
FIRST_SECONDS = 90.0
"""Of the good inputs, which import what their parser needs."""
MEMORY = 2 << 30
"""Bytes that one input may take on top of what the process has."""
LONGEST_SENTENCE = 12_000
"""Characters: a message may repeat one name of 10,000."""
CORPUS = 300
WATCHED = 0.3
"""Share of a guided parser's inputs whose lines are counted: counting costs several times what parsing does."""
OURS = ("/awq_engine/", "/awq_tui/", "/awq_kernels/")
LAST_INPUT = "last-input"
"""File that holds the input being tried, for a crash that ends the process."""


class TooLong(BaseException):
    """An input took more than `SECONDS`."""


@dataclass
class Tally:
    """What became of the inputs of one parser."""

    parser: str
    tried: int = 0
    refused: int = 0
    lines: int = 0
    """Of ours, reached by guided inputs."""
    seconds: float = 0.0
    slowest: float = 0.0
    defects: dict[str, bytes] = field(default_factory=dict)
    """Where and what -> the first input that does it."""
    last_refusal: str = ""


def fuzz(parser: Parser, inputs: int, seed: int, folder: Path) -> Tally:
    """Try the parser's seeds, then `inputs` damaged ones."""
    tally, rng = Tally(parser.name), random.Random(f"{parser.name} {seed}")
    started = time.perf_counter()
    with _limits(folder) as written:
        parser.prepare(folder)
        corpus = parser.seeds(folder)
        for data in corpus:
            defect = _attempt(parser, data, folder, written, tally, seconds=FIRST_SECONDS)
            assert defect is None, f"a good input of {parser.name}: {defect}"
        assert tally.refused == 0, f"a good input of {parser.name} was refused: {tally.last_refusal}"
        seen: set[tuple[CodeType, int]] = set()
        for _ in range(inputs):
            data = parser.mutate(rng.choice(corpus), rng)
            if len(corpus) > 1 and rng.random() < 0.05:
                data = crossed(data, rng.choice(corpus), rng)
            watch = parser.guided and rng.random() < WATCHED
            with _watched(seen) if watch else contextlib.nullcontext([]) as fresh:
                defect = _attempt(parser, data, folder, written, tally)
            if defect is not None:
                tally.defects.setdefault(defect, data)
            elif fresh and len(corpus) < CORPUS and len(data) < 1 << 16:
                corpus.append(data)
    tally.lines, tally.seconds = len(seen), time.perf_counter() - started
    return tally


def _attempt(
    parser: Parser, data: bytes, folder: Path, written: list[str], tally: Tally, seconds: float = SECONDS
) -> str | None:
    """Try one input; return what is wrong, in a line."""
    (folder / LAST_INPUT).write_bytes(data)
    tally.tried += 1
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        parser.parse(data, folder)
    except AwqError as error:
        tally.refused, tally.last_refusal = tally.refused + 1, str(error)
        problem = _bad_sentence(error)
    except BaseException as error:  # a panic in native code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        problem = _place(error)
    else:
        problem = None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if seconds == SECONDS:
            tally.slowest = max(tally.slowest, time.perf_counter() - started)
    if written:
        problem = f"wrote {written[0]}"
        written.clear()
    return problem


def _bad_sentence(error: AwqError) -> str | None:
    text = str(error)
    good = text.strip() and len(text) <= LONGEST_SENTENCE and text.rstrip()[-1] in ".?!)"
    return None if good else f"{_place(error)}: no sentence: {text[:80]!r}"


def _place(error: BaseException) -> str:
    """The exception and the last two lines of ours that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if any(o in frame.filename for o in OURS)]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-2:]))
    return f"{type(error).__name__} at {where or 'no line of ours'}"


@contextlib.contextmanager
def _limits(folder: Path) -> Iterator[list[str]]:
    """Inside, time and memory have ends, and paths opened for writing outside `folder` are listed."""
    from huggingface_hub import constants as hub  # once awq_engine has turned its telemetry off

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = {name: os.environ.get(name) for name in ("AWQ_TUI_HOME", "HF_HUB_CACHE", "HF_HOME")}
    os.environ |= {"AWQ_TUI_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf")}
    temporary, tempfile.tempdir = tempfile.tempdir, str(folder)
    cache, hub.HF_HUB_CACHE = hub.HF_HUB_CACHE, str(folder / "hf" / "hub")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, hard))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _guarded(folder) as written:
                yield written
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            signal.signal(signal.SIGALRM, handler)
            tempfile.tempdir, hub.HF_HUB_CACHE = temporary, cache
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


_guards: list[tuple[str, list[str]]] = []
"""The folder that may be written to now, and where violations go; an audit hook cannot be taken off again."""


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[list[str]]:
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    written: list[str] = []
    _guards.append((str(folder), written))
    try:
        yield written
    finally:
        _guards.pop()


_hooked: list[bool] = []
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guards or (event != "open" and event not in CHANGES):
        return
    path, mode, flags = (*arguments, None, None)[:3] if event == "open" else (arguments[0], "w", 0)
    others = () if event == "open" else arguments[1:]
    writes = isinstance(mode, str) and set(mode) & set("wax+")
    writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
    if not writes or not isinstance(path, str | bytes | os.PathLike):
        return
    folder, written = _guards[-1]
    name = os.path.realpath(Path(_opened(others)) / os.fsdecode(path))
    if not name.startswith((folder, "/dev/", "/proc/")) and "__pycache__" not in name:
        written.append(f"{event} {name}")


def _opened(others: tuple[Any, ...]) -> str:
    """The folder that a path is relative to: `shutil.rmtree` works with descriptors."""
    descriptor = others[-1] if others and isinstance(others[-1], int) else -1
    return f"/proc/self/fd/{descriptor}" if descriptor > 2 else ""


@contextlib.contextmanager
def _watched(seen: set[tuple[CodeType, int]]) -> Iterator[list[tuple[CodeType, int]]]:
    """Lines of ours that are executed for the first time."""
    fresh: list[tuple[CodeType, int]] = []

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        line = (frame.f_code, frame.f_lineno)
        if line not in seen:
            seen.add(line)
            fresh.append(line)
        return local

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        return local if any(name in frame.f_code.co_filename for name in OURS) else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        yield fresh
    finally:
        sys.settrace(before)


def shares(inputs: int, parsers: tuple[Parser, ...] = PARSERS) -> dict[Parser, int]:
    """How many of `inputs` each parser gets; every one gets some."""
    whole = sum(parser.share for parser in parsers)
    return {parser: max(4, round(inputs * parser.share / whole)) for parser in parsers}


def fuzz_all(
    inputs: int, seed: int, only: str = "", report: Callable[[Tally], object] = lambda tally: None
) -> list[Tally]:
    """Spread `inputs` over all parsers whose name has `only` in it."""
    chosen = tuple(parser for parser in PARSERS if only in parser.name)
    tallies = []
    for parser, count in shares(inputs, chosen).items():
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_disk()) as folder:
            tallies.append(fuzz(parser, count, seed, Path(folder)))
        report(tallies[-1])
    return tallies


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def show(tally: Tally) -> None:
    print(
        f"{tally.parser:<28} tried {tally.tried:>7}  refused {tally.refused:>7}  lines {tally.lines:>5}  "
        f"{tally.seconds:>6.1f} s  slowest {tally.slowest:.2f} s  defects {len(tally.defects)}",
        flush=True,
    )
    for defect, data in tally.defects.items():
        print(f"    {defect}\n        {data[:300]!r}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=200_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="")
    asked = options.parse_args()
    tallies = fuzz_all(asked.inputs, asked.seed, asked.only, show)
    tried, seconds = sum(tally.tried for tally in tallies), sum(tally.seconds for tally in tallies)
    defects = sum(len(tally.defects) for tally in tallies)
    print(f"{tried} inputs tried on {len(tallies)} parsers in {seconds:.0f} s: {defects} defects")
    return min(defects, 1)


if __name__ == "__main__":
    sys.exit(main())
