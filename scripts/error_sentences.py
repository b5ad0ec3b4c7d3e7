"""Every sentence of an error raised on purpose, read from the source: `write_reference.py` makes a page of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from awq_engine import errors
from awq_engine.errors import AwqError, ExitCode

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "kernels", "awq_tui")
EXITS = {
    name: each.exit_code
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, AwqError) and each is not AwqError
}
"""Name of an error's class -> the exit code it ends with."""


def error_sentences() -> dict[ExitCode, dict[str, list[str]]]:
    """Exit code -> module -> its sentences in their order, as Markdown; what is filled in stands in `<var>`."""
    found: dict[ExitCode, dict[str, list[str]]] = {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for name, sentence in _raised(ast.parse(file.read_text(encoding="utf-8"))):
            sentences = found.setdefault(EXITS[name], {}).setdefault(_module(file), [])
            if sentence not in sentences:
                sentences.append(sentence)
    return found


def _module(file: Path) -> str:
    """`awq_engine.formats.gptq`, whatever folder the package lies in."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[next(i for i, part in enumerate(parts) if part.startswith("awq_")) :])


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Class and sentence of every error made whose sentence is written where it is made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXITS and node.args:
            written = node.args[0]
            if isinstance(written, ast.Constant | ast.JoinedStr | ast.BinOp):
                yield node.func.id, _markdown(written)


def _markdown(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return "".join(f"\\{letter}" if letter in "*_<[" else letter for letter in text)
        case ast.JoinedStr(values=values):
            return "".join(_markdown(value) for value in values)
        case ast.BinOp(left=left, right=right):
            return _markdown(left) + _markdown(right)
        case ast.FormattedValue(value=value):
            return f"<var>{_name(value)}</var>"
        case _:
            return f"<var>{_name(node)}</var>"


def _name(node: ast.expr) -> str:
    """What a reader can call a value: the last name of an expression."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").replace("_", " ")
        case ast.Call(args=[ast.Name() | ast.Attribute() | ast.Call() | ast.Subscript() as first, *_]):
            return _name(first)
        case ast.Call(func=ast.Attribute(value=value)):
            return _name(value)
        case ast.Call(func=function):
            return _name(function)
        case ast.Subscript(value=value) | ast.BinOp(left=value):
            return _name(value)
        case _:
            return "…"
