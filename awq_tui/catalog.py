"""Every model a person could pick, as one list: bundled demo, finished runs, folders, the Hub's cache, the Hub.

No Textual here. All functions block (disk or network) and are called off the event loop. A folder that cannot be used
becomes an entry with a `problem`, never an exception. huggingface_hub is imported when first needed.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.errors import AwqError, UsageError
from awq_engine.paths import typed_path

if TYPE_CHECKING:
    from huggingface_hub.utils import CachedRepoInfo

    from awq_tui.run_book import RunSummary

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
SCAN_DEPTH = 2
"""Folders are looked into this deep: `~/models/org/name` is found."""
MAX_FOLDERS = 500
"""A scan stops after this many folders, so that starting in a home directory stays cheap."""
PACKED_DTYPES = {"I32", "U8", "I8"}
SHORT_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "F64": "fp64"}
_LIMIT = re.compile(r"(?P<sign>[<>])(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmbt]?)", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_LICENCE = re.compile(r"^license:\s*([\w.+-]+)\s*$", re.MULTILINE)
CARD_BYTES = 1 << 14
"""Of a model's card, in which the licence is looked for."""


class Where(StrEnum):
    """Where a model was found; the first column."""

    DEMO = "demo"
    RESULT = "result"
    """The output of a finished run."""
    DISK = "disk"
    CACHE = "cache"
    HUB = "hub"


@dataclass(frozen=True)
class Entry:
    """One model."""

    where: Where
    name: str
    model: str
    """What a run's config or a chat names it by: a folder or a Hub id."""
    path: Path | None = None
    """Its folder on this machine; None on the Hub."""
    arch: str = ""
    parameters: int | None = None
    dtype: str = ""
    nbytes: int | None = None
    quantized: str = ""
    """`awq 4-bit`, or empty for an original."""
    gated: bool = False
    """The Hub wants a licence accepted first."""
    downloads: int | None = None
    """Last 30 days, Hub only."""
    licence: str = ""
    """As the model's card names it."""
    has_report: bool = False
    """awq-tui made it, so there are statistics to inspect."""
    problem: str = ""
    """A sentence, when the model cannot be used."""
    fetched: str = ""
    """How much of it has arrived, while it is downloaded."""

    @property
    def key(self) -> str:
        return f"{self.where}:{self.model}"

    def matches(self, query: str) -> bool:
        """Whether every word is somewhere in what the list shows; `<8b` and `>500m` are limits of the parameters."""
        text = f"{self.where} {self.name} {self.arch} {self.quantized} {self.dtype} {self.licence}".lower()
        limits = [limit for word in query.split() if (limit := _LIMIT.fullmatch(word))]
        return all(word in text for word in without_limits(query).lower().split()) and all(map(self._within, limits))

    def _within(self, limit: re.Match[str]) -> bool:
        bound = float(limit["number"]) * _UNITS[limit["unit"].lower()]
        if self.parameters is None:
            return False
        return self.parameters < bound if limit["sign"] == "<" else self.parameters > bound


def without_limits(query: str) -> str:
    """The words of a query that are not limits: what the Hub is asked."""
    return " ".join(word for word in query.split() if not _LIMIT.fullmatch(word))


def demo_entry() -> Entry:
    """The model inside this package."""
    path = Path(str(importlib.resources.files("awq_engine") / "data" / "demo-model"))
    return replace(describe_folder(path, Where.DEMO), name="demo stories (bundled)")


def result_entries(summaries: Iterable[RunSummary]) -> list[Entry]:
    """The outputs of finished runs that still exist, newest first."""
    outputs = dict.fromkeys(output for summary in summaries if (output := summary.output) is not None)
    return [describe_folder(output, Where.RESULT) for output in outputs]


def folder_entries(roots: Sequence[Path]) -> list[Entry]:
    """The model folders in and under `roots`, each once, in order of discovery."""
    found = dict.fromkeys(path for root in roots for path in find_model_folders(root))
    return [describe_folder(path, Where.DISK) for path in found]


def default_roots(folders: Iterable[str] = ()) -> list[Path]:
    """Where to look: the current directory, ~/models and the folders the person added."""
    return [Path.cwd(), Path.home() / "models", *_known(folders)]


def _known(folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        with contextlib.suppress(UsageError):
            yield typed_path(folder)


def find_model_folders(root: Path) -> list[Path]:
    """Folders at or under `root`, at most `SCAN_DEPTH` deep, that hold a model or the ruins of one."""
    found: list[Path] = []
    level = [root.absolute()]
    budget = MAX_FOLDERS
    for _ in range(SCAN_DEPTH + 1):
        deeper: list[Path] = []
        for folder in level[:budget]:
            names, children = _list_folder(folder)
            if _looks_like_model(folder, names):
                found.append(folder.resolve())
            else:
                deeper += children
        budget -= len(level)
        level = deeper
        if budget <= 0:
            break
    return found


def _list_folder(folder: Path) -> tuple[set[str], list[Path]]:
    """The names in a folder and its visible sub-folders; both empty when it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(((entry.name, entry.is_dir()) for entry in entries), key=lambda item: item[0].lower())
    except OSError:
        return set(), []
    return {name for name, _ in listed}, [folder / name for name, is_dir in listed if is_dir and name[0] not in "._"]


def _looks_like_model(folder: Path, names: set[str]) -> bool:
    weights = any(name.endswith(WEIGHT_SUFFIXES) for name in names)
    if "config.json" not in names:
        return "model.safetensors" in names or "model.safetensors.index.json" in names
    if weights or "model.safetensors.index.json" in names:
        return True
    try:
        with (folder / "config.json").open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return b'"model_type"' in head or b'"architectures"' in head


def describe_folder(path: Path, where: Where, name: str | None = None, model: str | None = None) -> Entry:
    """The entry of a model folder; one that cannot be read says why."""
    from awq_engine.report import REPORT_NAME  # brings much that the app's first picture does not need

    entry = Entry(where, name or path.name, model or str(path), path)
    try:
        checkpoint = read_checkpoint(path)
        return replace(
            entry,
            arch=checkpoint.model_type,
            parameters=logical_parameters(checkpoint),
            dtype=SHORT_DTYPES.get(checkpoint.main_dtype, checkpoint.main_dtype.lower()),
            nbytes=checkpoint.nbytes,
            quantized=quantization_label(checkpoint.config),
            has_report=(path / REPORT_NAME).is_file(),
            licence=_licence_of(path),
        )
    except AwqError as error:
        return replace(entry, problem=str(error))
    except OSError as error:
        return replace(entry, problem=f"{path} cannot be read: {error.strerror or error}.")


def find_again(where: str, name: str, model: str, path: str) -> Entry | None:
    """A model that was listed before, as it is now; None when it is gone or cannot be used any more."""
    if where not in list(Where) or not model:
        return None
    entry = describe_folder(Path(path), Where(where), name, model) if path else Entry(Where(where), name, model)
    return None if entry.problem else entry


def _licence_of(path: Path) -> str:
    """What the front matter of the card beside the weights says."""
    try:
        with (path / "README.md").open("rb") as file:
            head = file.read(CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    found = _LICENCE.search(head) if head.startswith("---") else None
    return found[1] if found else ""


def logical_parameters(checkpoint: Checkpoint) -> int:
    """Weights as the model's makers count them: a packed integer word holds several, its scales none."""
    if checkpoint.quantization is None:
        return checkpoint.parameters
    bits = _integer(checkpoint.quantization, "bits") or _integer(checkpoint.quantization, "w_bit") or 4
    names = checkpoint.tensors
    total = 0
    for name, tensor in names.items():
        stem, _, kind = name.rpartition(".")
        packed = f"{stem}.qweight" in names
        if packed and kind == "qweight":
            total += tensor.numel * (32 // bits)
        elif not packed or kind == "bias":
            total += tensor.numel
    return total


def quantization_label(config: dict[str, Any]) -> str:
    """`awq 4-bit` for a quantized model, else empty."""
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return ""
    method = str(found.get("quant_method") or "quantized")
    bits = _integer(found, "bits") or _integer(found, "w_bit")
    return f"{method} {bits}-bit" if bits else method


def facts(checkpoint: Checkpoint) -> list[str]:
    """Short lines about a model's shape; what its config does not say is left out."""
    nested = checkpoint.config.get("text_config")
    config = nested if isinstance(nested, dict) else checkpoint.config
    heads, kv_heads = _integer(config, "num_attention_heads", "n_head"), _integer(config, "num_key_value_heads")
    grouped = heads and kv_heads and heads != kv_heads
    shape = [
        ("hidden", _integer(config, "hidden_size", "n_embd", "d_model")),
        ("mlp", _integer(config, "intermediate_size", "n_inner")),
        ("heads", f"{heads}/{kv_heads} GQA" if grouped else heads),
    ]
    reach = [
        ("blocks", _integer(config, "num_hidden_layers", "n_layer")),
        ("vocab", _integer(config, "vocab_size")),
        ("context", _integer(config, "max_position_embeddings", "n_positions")),
    ]
    lines = (" · ".join(f"{name} {value}" for name, value in pairs if value) for pairs in (reach, shape))
    return [line for line in lines if line]


def _integer(config: dict[str, Any], *names: str) -> int | None:
    return next((value for name in names if type(value := config.get(name)) is int), None)


def cache_entries() -> list[Entry]:
    """The models in the Hugging Face cache, by name; an absent cache is an empty one."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError):
        return []
    models = (repo for repo in repos if repo.repo_type == "model")
    return list(_describe_cached(sorted(models, key=lambda repo: repo.repo_id.lower())))


def _describe_cached(repos: Iterable[CachedRepoInfo]) -> Iterator[Entry]:
    """One entry per repository that holds (or was going to hold) weights, from its newest revision."""
    for repo in repos:
        revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
        main = [revision for revision in revisions if "main" in revision.refs]
        for revision in (main or revisions)[:1]:
            names = {file.file_name for file in revision.files}
            if _looks_like_model(revision.snapshot_path, names):
                yield describe_folder(revision.snapshot_path, Where.CACHE, repo.repo_id, repo.repo_id)


def merge(*lists: Iterable[Entry]) -> list[Entry]:
    """One list in the given order, each folder and each Hub id once: what is here hides what is only on the Hub."""
    kept: dict[str, Entry] = {}
    seen: set[str] = set()
    for entry in itertools.chain(*lists):
        names = {entry.model} | ({str(entry.path.resolve())} if entry.path else set())
        if not names & seen:
            kept[entry.key] = entry
            seen |= names
    return list(kept.values())
