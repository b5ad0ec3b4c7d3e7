"""Rows of a data set on the Hub, streamed through the `datasets` library: nothing is downloaded whole.

    hub:DATASET[@REVISION][:CONFIG][:SPLIT][:COLUMN]

The revision is resolved to a commit first, and the source names it: the same text can be had again. A DATASET that
starts with . / or ~ is a folder, read the same way. Without a split it is `train`, or the only one there is. Code that
a data set brings along is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any

from awq_engine.errors import BadInputError, UsageError
from awq_engine.hub_errors import hub_errors
from awq_engine.paths import typed_path

FORM = "hub:DATASET[@REVISION][:CONFIG][:SPLIT][:COLUMN]"
COMMIT_SHOWN = 12
"""Characters of a commit in the source's name."""


@dataclass(frozen=True)
class HubText:
    """What a spec asks for; an empty part means the default."""

    name: str
    revision: str | None
    config: str | None
    split: str | None
    column: str | None

    @property
    def is_folder(self) -> bool:
        return self.name.startswith((".", "/", "~"))


def hub_rows(spec: str) -> tuple[str, str | None, Iterator[tuple[Any, str]]]:
    """The source with its commit, the column asked for, and the rows with their places.

    Raises:
        UsageError: not of the form, or the `datasets` package is not installed.
        BadInputError: no such configuration, split or column; near names are given.
        NetworkError: the Hub's refusal.
    """
    asked = parse_hub_spec(spec)
    try:
        import datasets
    except ImportError:
        raise UsageError(f"'{spec}' needs the datasets package: pip install 'awq-tui[datasets]'.") from None

    with _refusals(spec, asked):
        commit = None if asked.is_folder else _commit(asked)
        name = str(typed_path(asked.name)) if asked.is_folder else asked.name
        splits: Any = datasets.load_dataset(
            name, _config(datasets, name, asked, commit), revision=commit, streaming=True
        )
        rows = iter(splits[_split(list(splits), asked, spec)])
        first = next(rows, None)
    if asked.column is not None and first is not None:
        _check_name("column", asked.column, list(first), spec)
    source = spec if commit is None else _with_commit(spec, asked, commit)
    return source, asked.column, _numbered(() if first is None else chain([first], rows), spec, asked)


def parse_hub_spec(spec: str) -> HubText:
    """The parts of `spec`; `UsageError` shows the form it should have."""
    name, *rest = spec.removeprefix("hub:").split(":")
    name, _, revision = name.partition("@")
    is_folder = name.startswith((".", "/", "~"))
    if not name or len(rest) > 3 or (".." in spec and not is_folder):
        raise UsageError(f"'{spec}' is not of the form {FORM}.")
    return HubText(name, revision or None, *(part or None for part in (*rest, "", "", "")[:3]))


def _commit(asked: HubText) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(asked.name, revision=asked.revision).sha


def _with_commit(spec: str, asked: HubText, commit: str) -> str:
    tail = spec.removeprefix("hub:").partition(":")
    return f"hub:{asked.name}@{commit[:COMMIT_SHOWN]}{tail[1]}{tail[2]}"


def _config(datasets: Any, name: str, asked: HubText, commit: str | None) -> str | None:
    """The configuration asked for, checked against what there is; None for a data set's only one."""
    names = datasets.get_dataset_config_names(name, revision=commit)
    if asked.config is not None:
        _check_name("configuration", asked.config, names, asked.name)
    elif len(names) > 1 and "default" not in names:
        raise BadInputError(f"{asked.name} has several configurations; name one of {_listed(names)} ({FORM}).")
    return asked.config


def _split(names: list[str], asked: HubText, spec: str) -> str:
    if asked.split is not None:
        _check_name("split", asked.split, names, spec)
        return asked.split
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    raise BadInputError(f"'{spec}' has no split train; name one of {_listed(names)} ({FORM}).")


def _check_name(what: str, name: str, names: list[str], where: str) -> None:
    """Refuse a name that is not there, with those most like it, or all when none is like it."""
    if name not in names:
        near = get_close_matches(name, names, cutoff=0.5)
        hint = f"did you mean {_listed(near)}?" if near else f"there is {_listed(names)}."
        raise BadInputError(f"'{where}' has no {what} '{name}'; {hint}")


def _listed(names: list[str]) -> str:
    shown = names[:12]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _numbered(rows: Any, spec: str, asked: HubText) -> Iterator[tuple[Any, str]]:
    with _refusals(spec, asked):
        for number, row in enumerate(rows):
            yield row, f"row {number} of {spec}"


@contextmanager
def _refusals(spec: str, asked: HubText) -> Iterator[None]:
    """What the Hub and the library refuse, as one of our errors."""
    with hub_errors(f"datasets/{asked.name}", asked.revision):
        try:
            yield
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            if type(error).__module__.startswith(("datasets", "builtins")):
                reason = re.split(r"\n|\. (?=[A-Z])", str(error))[0]
                raise BadInputError(f"'{spec}' cannot be loaded: {reason.rstrip('.')}.") from error
            raise
