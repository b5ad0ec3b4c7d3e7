"""From what a person wrote after `--calibration` or `--text` to documents.

    builtin                                      text that comes with awq-tui
    FILE.txt, FILE.jsonl, FILE.parquet, FOLDER   one document per file, per line or per row
    hub:DATASET[:CONFIG][:SPLIT][:COLUMN]        rows of a dataset on the Hub, streamed

A row has `text`, or `messages` that the model's chat template turns into text. Of files too big to read whole, pieces
spread over their length are read, and `Documents.detail` says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from awq_engine.errors import BadInputError, UsageError
from awq_engine.format import size
from awq_engine.hub_errors import hub_errors

SUFFIXES = (".txt", ".jsonl", ".parquet")
MAX_READ = 64 << 20
"""Bytes read of one file; more is a sample of it."""
PIECES = 64
"""Places spread over a bigger file that are read instead of the whole."""
COLUMNS = ("text", "messages")


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer to turn messages into text."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool) -> Any: ...


@dataclass(frozen=True)
class Documents:
    """Texts to be tokenized."""

    texts: list[str]
    """In order, none empty."""
    source: str
    """Where they come from, for people."""
    detail: str = ""
    """What was left out, as a clause; empty when nothing was."""
    mixed: bool = False
    """Any number of documents from the front is a fair sample of the whole."""


def load_documents(spec: str, tokenizer: ChatTokenizer, max_chars: int, builtin: Callable[[], list[str]]) -> Documents:
    """The documents that `spec` means.

    Args:
        tokenizer: its chat template renders `messages`.
        max_chars: a dataset on the Hub is read only until it gave this many characters.
        builtin: what the word `builtin` stands for here.
    Raises:
        BadInputError: no such file, not readable, not in the expected form, or no text in it.
        UsageError: a package that this needs is not installed.
        NetworkError: the Hub's refusal.
    """
    if spec == "builtin":
        return Documents(builtin(), "builtin", mixed=True)
    if spec.startswith("hub:"):
        documents = _load_hub(spec, tokenizer, max_chars)
    else:
        path = Path(spec).expanduser()
        documents = _load_folder(path, tokenizer) if path.is_dir() else _load_file(path, tokenizer)
    texts = [text for text in documents.texts if text.strip()]
    if not texts:
        raise BadInputError(f"There is no text in {documents.source}; give a file with some.")
    return Documents(texts, documents.source, documents.detail)


def absolute_spec(spec: str, what: str = "text") -> str:
    """`spec` so that it means the same in every folder; `BadInputError`, naming `what`, for a missing file."""
    if spec == "builtin" or spec.startswith("hub:"):
        return spec
    path = Path(spec).expanduser()
    if not path.exists():
        raise BadInputError(f"There is no {what} {path}; give builtin, a file, a folder or hub:DATASET.")
    return str(path.absolute())


def _load_folder(folder: Path, tokenizer: ChatTokenizer) -> Documents:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    usable = [path for path in files if path.suffix in SUFFIXES]
    if not usable:
        raise BadInputError(f"The folder {folder} holds no .txt, .jsonl or .parquet file.")
    parts = [_load_file(path, tokenizer) for path in usable]
    details = [part.detail for part in parts if part.detail]
    if len(usable) < len(files):
        details.append(f"{len(files) - len(usable)} files of other kinds left out")
    return Documents([text for part in parts for text in part.texts], str(folder), "; ".join(details))


def _load_file(path: Path, tokenizer: ChatTokenizer) -> Documents:
    if path.suffix not in SUFFIXES:
        known = "builtin, a .txt, .jsonl or .parquet file, a folder of these, or hub:DATASET"
        raise BadInputError(f"'{path}' is no text that can be used; give {known}.")
    try:
        if path.suffix == ".parquet":
            return _load_parquet(path, tokenizer)
        pieces, detail = _read_pieces(path)
        texts = [piece.decode("utf-8-sig") for piece in pieces]  # a byte-order mark is no text
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start}); convert it first."
        ) from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix == ".jsonl":
        texts = [text for piece in texts for text in _parse_lines(piece, path, tokenizer)]
    return Documents(texts, str(path), detail)


def _read_pieces(path: Path) -> tuple[list[bytes], str]:
    """The whole file, or whole lines from places spread over it, with a clause about what was read."""
    total = path.stat().st_size
    with path.open("rb") as file:
        if total <= MAX_READ:
            return [file.read()], ""
        pieces = []
        for number in range(PIECES):
            file.seek(number * total // PIECES)
            pieces.append(_whole_lines(file.read(MAX_READ // PIECES), first=number == 0))
    return pieces, f"{size(sum(map(len, pieces)))} of the {size(total)} of {path.name} read, from {PIECES} places"


def _whole_lines(piece: bytes, first: bool) -> bytes:
    """`piece` without the lines cut in two at its ends; words where there are no lines."""
    separator = b"\n" if b"\n" in piece else b" "
    start = 0 if first else piece.find(separator) + 1
    return piece[start : piece.rfind(separator) + 1]


def _parse_lines(text: str, path: Path, tokenizer: ChatTokenizer) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {number} of {path}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInputError(f"{where[0].upper()}{where[1:]} is not JSON ({error}).") from error
            yield row_text(row, where, tokenizer)


def row_text(row: Any, where: str, tokenizer: ChatTokenizer, column: str | None = None) -> str:
    """The text of one row: its `text`, or its `messages` through the chat template."""
    columns = (column,) if column else COLUMNS
    for name in columns:
        value = row.get(name) if isinstance(row, Mapping) else None
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return _render_messages(value, where, tokenizer)
    wanted = " or ".join(f'"{name}"' for name in columns)
    raise BadInputError(f"There is no {wanted} with text or messages in {where}.")


def _render_messages(messages: list[Any], where: str, tokenizer: ChatTokenizer) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise BadInputError(f"The model's chat template cannot render the messages in {where}: {reason}.") from error


def _load_parquet(path: Path, tokenizer: ChatTokenizer) -> Documents:
    """Row groups spread over the file, until `MAX_READ` bytes."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"Reading {path} needs pyarrow: pip install 'awq-tui[datasets]'.") from None

    try:
        with parquet.ParquetFile(path) as file:
            column = next((name for name in COLUMNS if name in file.schema_arrow.names), None)
            if column is None:
                names = ", ".join(file.schema_arrow.names)
                raise BadInputError(f"{path} has no column text or messages; its columns are {names}.")
            n_groups = file.num_row_groups
            step = max(1, -(-path.stat().st_size // MAX_READ))
            groups = range(0, n_groups, step)
            rows = file.read_row_groups(list(groups), columns=[column]).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadInputError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
    detail = f"{len(groups)} of {n_groups} row groups of {path.name} read" if len(groups) < n_groups else ""
    texts = [row_text(row, f"row {number} of {path}", tokenizer) for number, row in enumerate(rows)]
    return Documents(texts, str(path), detail)


def _load_hub(spec: str, tokenizer: ChatTokenizer, max_chars: int) -> Documents:
    name, config, split, column = _parse_hub_spec(spec)
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"'{spec}' needs the datasets package: pip install 'awq-tui[datasets]'.") from None

    texts: list[str] = []
    n_chars = 0
    with hub_errors(f"dataset {name}"):
        try:
            rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
            for number, row in enumerate(rows):
                texts.append(row_text(row, f"row {number} of {spec}", tokenizer, column))
                n_chars += len(texts[-1])
                if n_chars >= max_chars:
                    break
        except ValueError as error:
            raise BadInputError(f"'{spec}' cannot be loaded: {str(error).splitlines()[0]}") from error
    return Documents(texts, spec, f"the first {len(texts)} rows" if n_chars >= max_chars else "")


def _parse_hub_spec(spec: str) -> tuple[str, str | None, str | None, str | None]:
    """(dataset, config, split, column); an empty part means the default."""
    name, *rest = spec.removeprefix("hub:").split(":")
    if not name or len(rest) > 3:
        raise UsageError(f"'{spec}' is not of the form hub:DATASET[:CONFIG][:SPLIT][:COLUMN].")
    config, split, column = (part or None for part in (*rest, "", "", "")[:3])
    return name, config, split, column
