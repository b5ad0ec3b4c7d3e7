"""From what a person wrote after `--calibration` or `--text` to documents.

    builtin                                    text that comes with awq-tui
    FILE.txt                                   one document
    FILE.jsonl, FILE.json, FILE.parquet        one document a row; `rows` has the shapes that rows come in
    FOLDER                                     all of these files in it, in the order of their names
    hub:DATASET[@REVISION][:CONFIG][:SPLIT][:COLUMN]    rows of a data set on the Hub, streamed (`hub_text`)

Conversations go through the model's own chat template. A row or a file among others that cannot be used is left out
and counted in `Documents.detail`; a source is refused when nothing in it can be used. Of files too big to read whole,
pieces spread over their length are read; of many rows, no more than the tokens asked for can take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from awq_engine.conversations import Renderer
from awq_engine.documents import Document, Documents, Notes
from awq_engine.errors import BadInputError, UsageError, last_clause
from awq_engine.format import size
from awq_engine.hub_text import hub_rows
from awq_engine.paths import typed_path
from awq_engine.rows import COLUMNS, RowError, read_row

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
KINDS = "a .txt, .jsonl, .json or .parquet file, a folder of these"
MAX_READ = 64 << 20
"""Bytes read of one file; more is a sample of it."""
PIECES = 64
"""Places spread over a bigger file that are read instead of the whole."""
SELF = "self"
"""The calibration text that the model writes itself; `calibration` knows how."""
SPARE = 4
"""Rows kept for the characters wanted: this many times what their mean length asks for, as some may be unusable."""


class Row(NamedTuple):
    """One thing that may become a document."""

    value: Any
    """Text, or a row as `rows` knows them."""
    where: str


def load_documents(
    spec: str, tokenizer: Any, max_chars: int, builtin: Callable[[], Sequence[Any]], answers: bool = False
) -> Documents:
    """The documents that `spec` means.

    Args:
        tokenizer: its chat template renders conversations.
        max_chars: characters that will be used at most: no more rows are rendered than it takes to have them.
        builtin: texts and rows that the word `builtin` stands for here.
        answers: find the model's turns in conversations (`Document.answers`).
    Raises:
        BadInputError: no such file, not readable, not in the expected form, or no text in it.
        UsageError: a package that this needs is not installed.
        NetworkError: the Hub's refusal.
    """
    notes = Notes()
    reader = _Reader(tokenizer, notes, answers)
    source, mixed = spec, spec == "builtin"
    if mixed:
        items = reader.documents(Row(value, f"built-in text {n}") for n, value in enumerate(builtin(), 1))
    elif spec.startswith("hub:"):
        source, column, rows = hub_rows(spec)
        reader.column = column
        items = _until(max_chars, reader.documents(Row(*row) for row in rows), notes)
    else:
        items = reader.documents(_fewer(list(_read_path(typed_path(spec), notes)), max_chars, notes))
    documents = [replace(document, number=number) for number, document in enumerate(items)]
    detail = "; ".join(notes.clauses())
    if not documents:
        raise BadInputError(f"There is no text in {source}{f' ({detail})' if detail else ''}; give another source.")
    return Documents(documents, source, detail, mixed)


def absolute_spec(spec: str, what: str = "text") -> str:
    """`spec` so that it means the same in every folder; `BadInputError`, naming `what`, for a missing file."""
    if spec == "builtin" or spec.startswith("hub:"):
        return spec
    path = typed_path(spec)
    if not path.exists():
        raise BadInputError(f"There is no {what} {path}; give builtin, a file, a folder or hub:DATASET.")
    return str(path.absolute())


def split_mix(spec: str) -> list[str]:
    """The sources that a spec joins with `+`; the name of a file may have one too."""
    return [spec] if typed_path(spec).exists() else spec.split("+")


def absolute_mix(spec: str) -> str:
    """`spec` so that it means the same in every folder; `BadInputError` for a missing file."""
    return "+".join(part if part == SELF else absolute_spec(part, "calibration text") for part in split_mix(spec))


class _Reader:
    """Turns rows into documents; what it cannot use it notes."""

    def __init__(self, tokenizer: Any, notes: Notes, answers: bool) -> None:
        self.column: str | None = None
        """The only column of rows that counts, if the person named one."""
        self._renderer = Renderer(tokenizer, notes, answers)
        self._notes = notes

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        for row in rows:
            document = self._document(row)
            if document is not None and document.text.strip():
                yield document
            elif document is not None:
                self._notes.add("texts with nothing in them, left out", row.where)

    def _document(self, row: Row) -> Document | None:
        if isinstance(row.value, str):
            return Document(row.value)
        try:
            found = read_row(row.value, self.column)
        except RowError as error:
            self._notes.add("rows that cannot be used, left out", f"{row.where}: {error}")
            return None
        return Document(found) if isinstance(found, str) else self._renderer.render(found, row.where)


def _until(max_chars: int, documents: Iterator[Document], notes: Notes) -> Iterator[Document]:
    """Documents from the front until they have so many characters."""
    total = 0
    for number, document in enumerate(documents, 1):
        yield document
        total += len(document.text)
        if total >= max_chars:
            notes.add("only the first documents read", count=number)
            return


def _fewer(rows: list[Row], max_chars: int, notes: Notes) -> list[Row]:
    """`rows`, or so many spread evenly over them as surely have `max_chars` characters; whole texts are all kept."""
    if not rows or any(isinstance(row.value, str) for row in rows):
        return rows
    looked_at = rows[:: -(-len(rows) // PIECES)]
    characters = sum(len(str(row.value)) for row in looked_at) / len(looked_at)
    step = int(len(rows) * characters / (SPARE * max_chars))
    if step < 2:
        return rows
    kept = rows[::step]
    notes.add(f"a sample: every {step}th of {len(rows)} rows", count=len(kept))
    return kept


def _read_path(path: Path, notes: Notes) -> Iterator[Row]:
    if not path.is_dir():
        yield from _read_file(path, notes)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    usable = [file for file in files if file.suffix in SUFFIXES]
    if not usable:
        raise BadInputError(f"The folder {path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file.")
    if len(usable) < len(files):
        notes.add("files of other kinds, left out", count=len(files) - len(usable))
    for file in usable:
        try:
            yield from _read_file(file, notes)
        except BadInputError as error:
            notes.add("files that cannot be used, left out", str(error))


def _read_file(path: Path, notes: Notes) -> Iterator[Row]:
    if path.suffix not in SUFFIXES:
        raise BadInputError(f"'{path}' is no text that can be used; give builtin, {KINDS}, or hub:DATASET.")
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path, notes)
            return
        texts = [piece.decode("utf-8-sig") for piece in _read_pieces(path, notes)]  # a byte-order mark is no text
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start}); convert it first."
        ) from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror or error}.") from error
    for text in texts:
        if path.suffix == ".txt":
            yield Row(text, str(path))
        else:
            yield from _read_json(text, path, notes)


def _read_pieces(path: Path, notes: Notes) -> list[bytes]:
    """The whole file, or whole lines from places spread over it."""
    total = path.stat().st_size
    with path.open("rb") as file:
        if total <= MAX_READ:
            return [file.read()]
        pieces = []
        for number in range(PIECES):
            file.seek(number * total // PIECES)
            pieces.append(_whole_lines(file.read(MAX_READ // PIECES), first=number == 0))
    read = size(sum(map(len, pieces)))
    notes.add(f"{read} of the {size(total)} of {path.name} read, places", count=PIECES)
    return pieces


def _whole_lines(piece: bytes, first: bool) -> bytes:
    """`piece` without the lines cut in two at its ends; words where there are no lines."""
    separator = b"\n" if b"\n" in piece else b" "
    start = 0 if first else piece.find(separator) + 1
    return piece[start : piece.rfind(separator) + 1]


def _read_json(text: str, path: Path, notes: Notes) -> Iterator[Row]:
    """One JSON value a line; a .json file may also be one value, mostly a list of rows."""
    if path.suffix == ".json":
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            pass  # then it has lines, as data sets' .json files often do
        else:
            rows = whole if isinstance(whole, list) else [whole]
            yield from (Row(value, f"row {number} of {path}") for number, value in enumerate(rows))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield Row(json.loads(line), f"line {number} of {path}")
            except (ValueError, RecursionError) as error:
                notes.add("lines that are not JSON, left out", f"line {number} of {path}: {error}")


def _read_parquet(path: Path, notes: Notes) -> Iterator[Row]:
    """Row groups spread over the file, until `MAX_READ` bytes; only columns that a row is looked at for."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"Reading {path} needs pyarrow: pip install 'awq-tui[datasets]'.") from None

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in COLUMNS if name in names]
            if not columns:
                raise BadInputError(f"{path} has no column with text or messages; its columns are {', '.join(names)}.")
            groups = range(0, file.num_row_groups, max(1, -(-path.stat().st_size // MAX_READ)))
            if len(groups) < file.num_row_groups:
                notes.add(f"row groups of the {file.num_row_groups} of {path.name} read", count=len(groups))
            for batch in file.iter_batches(row_groups=list(groups), columns=columns):
                for value in batch.to_pylist():
                    yield Row(value, f"row {number} of {path}")
                    number += 1
    except pyarrow.ArrowException as error:
        raise BadInputError(f"{path} is not a readable parquet file: {last_clause(error)}") from error
