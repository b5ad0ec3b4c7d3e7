"""What the configure screen holds before it becomes a `RunConfig`: raw values, their problems, and the forecast.

No Textual here. `review` looks at the disk but reads no weights; it is called after every change, off the event loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from awq_engine.checkpoint import Checkpoint
from awq_engine.config import Format, Method, Preset, RunConfig
from awq_engine.errors import ResourceError, UsageError
from awq_engine.estimate import Estimate, Speed, block_linears, estimate, fitting_group_sizes
from awq_engine.format import size
from awq_engine.memory import parse_size
from awq_engine.output import check_output, check_space
from awq_engine.overrides import pattern_problem
from awq_engine.paths import typed_path
from awq_tui.details import DEFAULT_SEQ_LEN

TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
BYTES_PER_TOKEN = 4
"""Of English text, roughly: enough to warn about a file that is far too small."""


OPTION_WORDS = {
    "choose another with -o, or replace it with --overwrite": "choose another, or switch on overwrite",
    "so --overwrite does not touch it": "so it is never overwritten",
    "choose another with -o": "choose another",
    "use --bits ": "choose ",
    "or --format ": "or the format ",
    "use --seq-len ": "lower tokens each to ",
    "leave out --lm-head": "leave it in floats",
    "every layer: -1.": "every layer: row (-1).",
    ", -1.": ", row (-1).",
}
"""The engine's sentences speak to the command line; the form has fields instead."""


FIELD_WORDS = {
    "The override '": "override",
    "group size": "group-size",
    "output head": "lm-head",
    "samples": "samples",
    "sequence length": "seq-len",
    "Sequences of": "seq-len",
    "holds only a bit width": "format",
    "bit width": "bits",
    "override": "override",
    "bits per weight": "target-bpw",
    "memory": "max-memory",
    "Ray cluster": "on",
    "worker processes": "workers",
    "threads": "threads",
    "seed": "seed",
}
"""Which field a sentence is about, by words that are in it; the first that fits."""


class TextSource(StrEnum):
    """Where the calibration text comes from."""

    BUILTIN = "builtin"
    FILE = "file"
    HUB = "hub"
    SELF = "self"
    """The model writes it."""


@dataclass(frozen=True)
class Draft:
    """The form's values as the person left them; the numbers are still text."""

    model: str
    output: str
    bits: int = RunConfig.bits
    group_size: int = RunConfig.group_size
    symmetric: bool = False
    preset: Preset = RunConfig.preset
    method: Method = RunConfig.method
    layout: Format = RunConfig.format
    text_source: TextSource = TextSource.BUILTIN
    text: str = ""
    """A path or a data set's name, by `text_source`."""
    answer_only: bool = False
    samples: str = str(RunConfig.samples)
    seq_len: str = str(DEFAULT_SEQ_LEN)
    device: str = RunConfig.device
    overwrite: bool = False
    overrides: str = ""
    """As the command line takes them, spaces between them."""
    target_bpw: str = ""
    max_memory: str = ""
    threads: str = str(RunConfig.threads)
    workers: str = str(RunConfig.workers)
    on: str = ""
    seed: str = str(RunConfig.seed)
    lm_head: bool = False

    @property
    def calibration(self) -> str:
        """As `RunConfig.calibration` spells it; the engine works in another folder, so paths are absolute."""
        if self.text_source is TextSource.FILE:
            return str(typed_path(self.text.strip()).absolute())
        if self.text_source is TextSource.HUB:
            return f"hub:{self.text.strip().removeprefix('hub:')}"
        return self.text_source.value

    @property
    def output_path(self) -> Path:
        return typed_path(self.output.strip()).absolute()

    @property
    def output_is_there(self) -> bool:
        try:
            return bool(self.output.strip()) and self.output_path.is_dir()
        except (UsageError, OSError):
            return False

    def config(self) -> RunConfig:
        """The request; `UsageError` for a value that can never work."""
        return RunConfig(
            self.model, str(self.output_path), self.bits, self.group_size, self.symmetric, self.preset, self.method,
            self.layout,
            calibration=self.calibration, answer_only=self.answer_only,
            samples=_whole("number of samples", self.samples), seq_len=_whole("sequence length", self.seq_len),
            device=self.device, overwrite=self.overwrite, seed=_whole("seed", self.seed),
            overrides=tuple(self.overrides.split()), target_bpw=_bits_per_weight(self.target_bpw),
            max_memory=parse_size(self.max_memory) if self.max_memory.strip() else 0, lm_head=self.lm_head,
            threads=_whole("number of threads", self.threads),
            workers=_whole("number of worker processes", self.workers), on=self.on.strip(),
        )  # fmt: skip


@dataclass(frozen=True)
class Review:
    """What is known about a draft."""

    config: RunConfig | None
    """None while the draft cannot become one."""
    forecast: Estimate | None
    """None without a config, or for a model that is not on this machine yet."""
    problems: dict[str, str]
    """Sentences by form field; a run with any of these cannot start."""
    warnings: tuple[str, ...]
    fitting: tuple[int, ...]
    """Group sizes that divide every layer; empty when unknown."""

    @property
    def ready(self) -> bool:
        return self.config is not None and not self.problems


def review(draft: Draft, checkpoint: Checkpoint | None, speed: Speed | None, free_memory: int | None) -> Review:
    """Check a draft against the model, the disk and the memory (bytes free, None if unknown)."""
    problems = {**_text_problem(draft), **_output_problem(draft, checkpoint)}
    config, forecast = None, None
    try:
        config = draft.config()
    except UsageError as error:
        problems[_field_of(str(error))] = in_form_words(str(error))
    if config and checkpoint:
        forecast = estimate(checkpoint, config, speed)
        problems |= {_field_of(problem): in_form_words(problem) for problem in forecast.problems}
        problems |= _override_problem(config, checkpoint)
    if forecast and "output" not in problems:
        problems |= _disk_problem(draft, forecast)
    fitting = tuple(fitting_group_sizes(block_linears(checkpoint))) if checkpoint else ()
    return Review(config, forecast, problems, _warnings(draft, config, forecast, free_memory), fitting)


def _whole(what: str, text: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise UsageError(f"The {what} must be a whole number, not '{text.strip()}'.") from None


def target_size(text: str) -> float:
    """The bits per weight to meet, 0 for none and for what is no number yet."""
    try:
        return _bits_per_weight(text)
    except UsageError:
        return 0.0


def _bits_per_weight(text: str) -> float:
    try:
        return float(text.strip() or 0)
    except ValueError:
        raise UsageError(f"The size must be a number of bits per weight, such as 4.25, not '{text.strip()}'.") from None


def _override_problem(config: RunConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """A pattern that fits nothing in the checkpoint."""
    stored = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    linears = [linear.key for linear in block_linears(checkpoint)]
    problem = pattern_problem(config.overrides, [*linears, *stored]) if linears else None
    return {"override": problem} if problem else {}


def _field_of(problem: str) -> str:
    """Which form field a sentence of the config or the estimate belongs to."""
    return next((field for words, field in FIELD_WORDS.items() if words in problem), "model")


def _text_problem(draft: Draft) -> dict[str, str]:
    text = draft.text.strip()
    if draft.method is Method.RTN or draft.text_source in (TextSource.BUILTIN, TextSource.SELF):
        return {}
    if draft.text_source is TextSource.HUB:
        return {} if text else {"text": "Name a data set on the Hub: dataset[:config][:split][:column]."}
    if not text:
        return {"text": f"Name a calibration file ({', '.join(TEXT_SUFFIXES)}) or a folder of them."}
    try:
        path = Path(draft.calibration)
        there = path.exists()
    except (UsageError, OSError) as error:
        return {"text": str(error)}
    if not there:
        return {"text": f"There is no file {path}."}
    if not os.access(path, os.R_OK):
        return {"text": f"{path} cannot be read: permission denied."}
    if path.is_file() and path.suffix not in TEXT_SUFFIXES:
        return {"text": f"{path.name} is none of {', '.join(TEXT_SUFFIXES)}."}
    return {}


def _output_problem(draft: Draft, checkpoint: Checkpoint | None) -> dict[str, str]:
    if not draft.output.strip():
        return {"output": "Name the folder that the result goes to."}
    try:
        check_output(
            draft.output_path,
            checkpoint.path.resolve() if checkpoint and checkpoint.path.is_dir() else None,
            draft.overwrite,
        )
    except (UsageError, OSError) as error:
        return {"output": in_form_words(str(error))}
    return {}


def _disk_problem(draft: Draft, forecast: Estimate) -> dict[str, str]:
    try:
        check_space(draft.output_path, forecast)
    except (ResourceError, OSError) as error:
        return {"output": str(error)}
    return {}


def in_form_words(sentence: str) -> str:
    """A sentence of the engine that names command line options, as the form calls them."""
    for option, words in OPTION_WORDS.items():
        sentence = sentence.replace(option, words)
    return sentence


def _warnings(
    draft: Draft, config: RunConfig | None, forecast: Estimate | None, free_memory: int | None
) -> tuple[str, ...]:
    found = []
    if forecast and free_memory is not None and forecast.peak_host_bytes > free_memory:
        peak = size(forecast.peak_host_bytes)
        found.append(f"Peak memory is about {peak}, and {size(free_memory)} are free now.")
    if config and draft.text_source is TextSource.FILE and Path(draft.calibration).is_file():
        wanted, available = config.samples * config.seq_len, Path(draft.calibration).stat().st_size // BYTES_PER_TOKEN
        if available < wanted:
            found.append(f"The text holds roughly {available} tokens; {wanted} are wanted.")
    if draft.method is Method.RTN:
        found.append("Round to nearest looks at no text: preset and calibration change nothing.")
    return tuple(found)
