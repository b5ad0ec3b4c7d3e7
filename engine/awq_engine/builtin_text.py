"""The calibration and evaluation text that needs no network.

Two sources are mixed. The first is our own: short pieces of many kinds (stories, dialogues, prose, everyday writing,
code, mathematics, fifteen languages) in `data/calibration`, and different pieces of the same kinds in
`data/evaluation`, which calibration never sees. The second is the running interpreter's documentation: the language
reference that `help()` prints, and the docstrings and sources of a fixed list of standard modules. They are read as
files and parsed, never imported, so that nothing runs; a file that an installation lacks is passed over.

Documents of all kinds take turns, so any number of them from the front is a mixture; when our own are used up, the
interpreter's follow. The order depends on nothing but the two sources; the interpreter's part differs between Python
versions, which is why a run records a fingerprint of its calibration tokens.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Piece = str | dict[str, Any]
"""A text, or a conversation: a row with `messages`."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

DATA = Path(__file__).with_name("data")
SEPARATOR = "\n%%\n"
KINDS = ("stories", "dialogues", "prose", "everyday", "languages", "mathematics", "code")
PIECE_CHARACTERS = 1500
SHORTEST_DOCSTRING = 200

TOPICS = "pydoc_data/topics.py"
DOCUMENTED = (
    "abc argparse ast calendar cmd codecs collections/__init__ concurrent/futures/_base configparser contextlib copy "
    "csv dataclasses difflib doctest email/message enum fileinput fractions ftplib functools getopt gettext graphlib "
    "gzip heapq http/cookiejar imaplib inspect ipaddress json/__init__ locale logging/__init__ mimetypes "
    "multiprocessing/pool ntpath optparse os pathlib pdb pickle pickletools platform plistlib pprint profile "
    "random sched secrets selectors shelve shutil smtplib socket socketserver ssl statistics string "
    "subprocess tarfile tempfile textwrap threading timeit trace traceback turtle typing unittest/case unittest/mock "
    "urllib/parse urllib/request uuid warnings wave weakref xml/dom/minidom xml/etree/ElementTree zipfile"
)
SOURCES = "bisect colorsys datetime dis fnmatch heapq keyword numbers sched stat textwrap token types"


def calibration_documents() -> list[Piece]:
    """The built-in calibration text: about 1.3 million characters, mostly in documents of less than 1,500.

    Returns:
        Different, non-empty documents in a fixed order, kinds taking turns; take from the front to get a mixture.
    """
    kinds = [*own_documents(DATA / "calibration"), interpreter_sources(), interpreter_documentation()]
    return list({str(document): document for document in take_turns(kinds)}.values())


def evaluation_documents() -> list[str]:
    """The built-in evaluation text, all our own and none of it in `calibration_documents`.

    Returns:
        Non-empty documents in a fixed order, kinds taking turns; conversations as plain text, so that every model is
        measured on the same.
    """
    return [written_out(document) for document in take_turns(own_documents(DATA / "evaluation"))]


def take_turns(kinds: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first of every list, then the second of every list that has one, and so on."""
    for row in zip_longest(*kinds):
        yield from (document for document in row if document is not None)


def own_documents(folder: Path) -> list[Sequence[Piece]]:
    """The documents of each kind in one of our two folders."""
    return [
        read_dialogues(folder / f"{k}.jsonl") if k == "dialogues" else read_texts(folder / f"{k}.txt") for k in KINDS
    ]


def read_texts(path: Path) -> list[str]:
    """Documents separated by lines that hold only `%%`."""
    return path.read_text(encoding="utf-8").rstrip("\n").split(SEPARATOR)


def read_dialogues(path: Path) -> list[dict[str, Any]]:
    """Conversations, one JSON object with `messages` a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written_out(document: Piece) -> str:
    """A conversation with the speakers' names; a text as it is."""
    if isinstance(document, str):
        return document
    return "\n\n".join(f"{m['role'].title()}: {m['content']}" for m in document["messages"])


def interpreter_documentation() -> list[str]:
    """Pieces of the language reference and of modules' docstrings, in turns."""
    reference = [piece for text in topic_texts() for piece in pieces(text)]
    docstrings = [piece for name in DOCUMENTED.split() for piece in pieces("\n\n".join(module_docstrings(name)))]
    return list(take_turns([reference, docstrings]))


def interpreter_sources() -> list[str]:
    """Pieces of standard modules' source code."""
    return [piece for name in SOURCES.split() for piece in pieces(standard_source(f"{name}.py"))]


def topic_texts() -> list[str]:
    """The texts behind `help('if')` and its like, in alphabetical order; none where Python comes without them."""
    for statement in ast.parse(standard_source(TOPICS)).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return [topics[name] for name in sorted(topics)]
    return []


def module_docstrings(name: str) -> Iterator[str]:
    """The longer docstrings of a standard module, its classes and functions, in the order of its source."""
    return definition_docstrings(ast.parse(standard_source(f"{name}.py")))


def definition_docstrings(node: Documented) -> Iterator[str]:
    """The longer docstrings of a definition and of those directly inside it."""
    docstring = ast.get_docstring(node) or ""
    if len(docstring) >= SHORTEST_DOCSTRING:
        yield docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from definition_docstrings(child)


def standard_source(file: str) -> str:
    """A file of the standard library as text; empty where this Python keeps none, for instance in a zip archive."""
    try:
        return (Path(sysconfig.get_path("stdlib")) / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def pieces(text: str) -> Iterator[str]:
    """The paragraphs of a text, joined into documents of about 1,500 characters."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += paragraph.strip("\n") + "\n\n"
    if piece.strip():
        yield piece
