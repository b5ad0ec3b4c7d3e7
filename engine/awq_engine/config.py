"""What a person asked for: one frozen `RunConfig`, checked before anything expensive starts.

Standard library only: the app imports this module.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from awq_engine.errors import BadInputError, UsageError
from awq_engine.formats.limits import Format, bits_problem
from awq_engine.overrides import Override, parse_override

SUPPORTED_BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128, -1)
"""The usual ones; any other divisor of a layer's inputs works too."""
SCHEMA_VERSION = 1


class Preset(StrEnum):
    """How much work to spend per layer."""

    FAST = "fast"
    """AWQ scale search and clip search, as AutoAWQ defines them."""
    BALANCED = "balanced"
    """`fast`, then error feedback while rounding, on inputs from the already quantized blocks whose drift the weights
    first make up for."""
    BEST = "best"
    """`balanced`, with feedback along both sides of a weight, weighed by what the outputs do to the prediction."""


class Method(StrEnum):
    """Which algorithm chooses the integers."""

    AWQ = "awq"
    GPTQ = "gptq"
    """Error feedback alone: no channel scales, nothing folded, no clips."""
    RTN = "rtn"
    """Round to nearest: no calibration influence on the weights; the baseline."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's output; written to `run.json` and into the report."""

    model: str
    """A folder, a run id or a Hub id (`org/name[@revision]`), as the person wrote it."""
    output: str
    """Folder the checkpoint appears in once it is complete; absolute."""
    bits: int = 4
    group_size: int = 128
    """Inputs that share one scale; -1 means the whole row."""
    symmetric: bool = False
    """Zero points all in the middle of the range instead of chosen per group."""
    preset: Preset = Preset.BALANCED
    method: Method = Method.AWQ
    format: Format = Format.AWQ
    calibration: str = "builtin"
    """`builtin`, a .txt/.jsonl/.json/.parquet file or folder, `hub:dataset[@revision][:config][:split][:column]`, or
    `self` (the model writes it); several joined by `+`."""
    answer_only: bool = False
    """Of conversations only the model's own turns count."""
    samples: int = 128
    """Calibration sequences."""
    seq_len: int = 512
    """Tokens per calibration sequence."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    seed: int = 0
    """Of all that is drawn: scales that folds are probed with, tokens whose gradients are carried, text of its own."""
    overwrite: bool = False
    """Replace an existing output folder, once the new one is complete."""
    max_memory: int = 0
    """Bytes of host memory to stay under, with hidden states on disk if need be; 0: what is free. Changes no output."""
    threads: int = 0
    """CPU threads of each process; 0 shares all out. Recorded because sums in another order are other bits."""
    workers: int = 1
    """Processes that share the work, each with `threads` threads, on its own GPU where there are several. Changes no
    output."""
    on: str = ""
    """Address of a Ray cluster that does the work, such as ray://host:10001; on as many of its processes as `workers`,
    or, with one, as there is room for. Changes no output."""
    overrides: tuple[str, ...] = ()
    """Exceptions for single linears, as `overrides.py` reads them; the last one that fits a linear decides."""

    target_bpw: float = 0.0
    """Bits per weight to meet by choosing the shape of every linear; 0 when bits and group size say it."""

    lm_head: bool = False
    """Quantize the output head too; a target size does not count it."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a value that can never work, naming the ones that do."""
        _check_choice("bit width", self.bits, SUPPORTED_BITS)
        _check_group_size(self.group_size)
        if problem := bits_problem(self.format, self.bits):
            raise UsageError(problem)
        for name, value in (("samples", self.samples), ("sequence length", self.seq_len)):
            if value < 1:
                raise UsageError(f"The {name} must be at least 1, not {value}.")
        if self.max_memory < 0:
            raise UsageError("The memory to stay under cannot be negative.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed must be at least 0 and below 2**63, not {self.seed}.")
        if self.threads < 0:
            raise UsageError("The number of threads cannot be negative.")
        if self.on and "://" not in self.on and self.on not in ("auto", "local"):
            raise UsageError(f"'{self.on}' is no address of a Ray cluster; it looks like ray://host:10001.")
        if self.workers < 1:
            raise UsageError(f"The number of worker processes must be at least 1, not {self.workers}.")
        if not 0 <= self.target_bpw < float("inf"):
            raise UsageError(f"A target of {self.target_bpw} bits per weight is not possible; choose one above 0.")
        for override in map(parse_override, self.overrides):
            _check_override(override, self.format)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """Rebuild a config; unknown keys come from a newer version and are refused by name."""
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict):
            raise BadInputError("The run's config is no JSON object.")
        if unknown := set(data) - known:
            raise BadInputError(f"The run's config has unknown keys {sorted(unknown)}; a newer awq-tui wrote it.")
        _check_types(data, {f.name: str(f.type) for f in dataclasses.fields(cls)})
        try:
            readers = {"preset": Preset, "method": Method, "format": Format, "overrides": tuple}
            return cls(**{key: readers[key](value) if key in readers else value for key, value in data.items()})
        except (TypeError, ValueError) as error:
            raise BadInputError(f"The run's config cannot be read: {error}.") from error


def _check_types(data: dict[str, Any], declared: dict[str, str]) -> None:
    """Refuse a value of another type than its field's; enums are strings."""
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (float, int),
        "bool": (bool,),
        "tuple[str, ...]": (list, tuple),
    }
    for name, value in data.items():
        expected = types.get(declared[name], (str,))
        fits = isinstance(value, expected) and isinstance(value, bool) == (bool in expected)
        if not fits or (list in expected and not all(isinstance(item, str) for item in value)):
            raise BadInputError(
                f"The run's config is damaged: '{name}' is {value!r}, not of type {expected[0].__name__}."
            )


def _check_override(override: Override, layout: Format) -> None:
    """Raise `UsageError` for values that no linear can have, or that the format cannot hold for single linears."""
    if override.skip:
        return
    if not layout.mixes:
        raise UsageError(
            f"The override '{override}' cannot be stored: the {layout.value} format has one bit width and one group "
            "size for all linears; only skip works there."
        )
    if override.bits is not None:
        _check_choice("bit width", override.bits, SUPPORTED_BITS)
    if override.group_size is not None:
        _check_group_size(override.group_size)


def _check_group_size(group_size: int) -> None:
    if group_size < 1 and group_size != -1:
        raise UsageError(f"A group size of {group_size} is not possible; choose 1 or more, or -1 for the row.")


def _check_choice(what: str, value: int, choices: tuple[int, ...]) -> None:
    if value not in choices:
        allowed = ", ".join(str(choice) for choice in choices)
        raise UsageError(f"A {what} of {value} is not supported; choose one of {allowed}.")


@dataclass(frozen=True)
class RunFile:
    """The immutable request a run directory starts with (`run.json`)."""

    run_id: str
    config: RunConfig
    created: float
    """Unix time in seconds."""
    version: int = field(default=SCHEMA_VERSION)

    def dumps(self) -> str:
        data = {
            "version": self.version,
            "run_id": self.run_id,
            "created": self.created,
            "config": self.config.to_json(),
        }
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def loads(cls, text: str, where: str) -> RunFile:
        """Parse `run.json`; `where` names the file in errors (`BadInputError`)."""
        try:
            data = json.loads(text)
            version = int(data["version"])
            if version > SCHEMA_VERSION:
                raise BadInputError(f"{where} was written by a newer awq-tui (schema {version}); upgrade to read it.")
            return cls(str(data["run_id"]), RunConfig.from_json(data["config"]), float(data["created"]), version)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BadInputError(
                f"{where} is not a run description ({error}); remove the run to be rid of it."
            ) from error


def check_cluster(on: str) -> None:
    """Raise `UsageError` where a run is to go to a cluster and Ray, an extra, is not installed."""
    if on and importlib.util.find_spec("ray") is None:
        raise UsageError("Working on a cluster needs Ray; install it with: pip install 'awq-tui[ray]'.")
