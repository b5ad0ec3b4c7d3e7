"""Do the tests notice? Changes a module in one place at a time, and says which changes no test fails for.

    python scripts/mutate.py engine/awq_engine/journal.py tests/engine/test_journal.py [--mutants 60] [--seed 0]

Comparisons, arithmetic, numbers, words, conditions, results, calls and assignments are changed; annotations,
docstrings, decorators and the messages of errors are not. The tests run in a fork of this process, which has loaded the
libraries and nothing of ours, and in which an import of the module gives the changed one: processes that tests start
see it unchanged. What survives is a missing test, or a change that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT, ROOT / "engine", ROOT / "kernels")
LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "hypothesis", "pytest", "_pytest", "textual", "rich")
"""Of these, those that the tests load are loaded before forking."""
OTHERS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
OPTIONS = (
    "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu and not network",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip
LONGEST = 3600.0
"""Seconds that the tests may take with the module as it is."""
OPPOSITES = {"min": "max", "amin": "amax", "minimum": "maximum", "any": "all", "round_": "floor_", "argmin": "argmax"}
OPPOSITES |= {other: name for name, other in OPPOSITES.items()}


@dataclass(frozen=True)
class Mutant:
    """A module with one thing changed."""

    line: int
    change: str
    """What it was and what it is now."""
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every change that is known here."""
    tree = ast.parse(source)
    left_alone = {id(node) for part in _kept(tree) for node in ast.walk(part)}
    for number, node in enumerate(ast.walk(tree)):
        for changed in () if id(node) in left_alone else _changes(node):
            whole = copy.deepcopy(tree)
            target = next(found for index, found in enumerate(ast.walk(whole)) if index == number)
            line = min(part.lineno for part in ast.walk(node) if hasattr(part, "lineno"))
            yield Mutant(line, f"{_told(node)}  ->  {_told(changed)}", _Put(target, changed).visit(whole))


class _Put(ast.NodeTransformer):
    """One node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self._new, node) if node is self._old else self.generic_visit(node)


def _told(node: ast.AST) -> str:
    text = ast.unparse(node).split("\n")[0]
    return text if len(text) <= 70 else f"{text[:67]}..."


def _kept(tree: ast.Module) -> Iterator[ast.AST]:
    """What has no meaning for tests: annotations, docstrings, decorators, errors' words, imports for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node
        elif isinstance(node, ast.Raise):
            yield from (part for part in (node.exc, node.cause) if part)
        elif isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            yield node
        yield from filter(None, (getattr(node, name, None) for name in ("annotation", "returns")))
        yield from getattr(node, "decorator_list", ())


def _changes(node: Any) -> Iterator[ast.AST]:
    """Other nodes for the place of this one."""
    match node:
        case ast.Compare():
            yield from (_with(node, "ops", _changed_at(node.ops, place)) for place in range(len(node.ops)))
        case ast.BinOp() | ast.BoolOp() if type(node.op) in OTHERS:
            yield _with(node, "op", OTHERS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool() | int() | float() | str()):
            yield ast.Constant(_other_value(node.value))
        case ast.If() | ast.While() | ast.IfExp():
            yield _with(node, "test", ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, "ifs", [ast.UnaryOp(ast.Not(), part) for part in node.ifs])
        case ast.Return(value=ast.AST()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield _with(node, "value", ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Expr(node.value)
        case ast.Call(keywords=[*_, ast.keyword(arg=str())]):
            yield _with(node, "keywords", node.keywords[:-1])
        case ast.Continue() | ast.Break():
            yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
        case ast.Name(id=name) if name in OPPOSITES and hasattr(builtins, name):
            yield _with(node, "id", OPPOSITES[name])
        case ast.Attribute(attr=name) if name in OPPOSITES:
            yield _with(node, "attr", OPPOSITES[name])


def _with(node: ast.AST, field: str, value: Any) -> ast.AST:
    changed = copy.copy(node)
    setattr(changed, field, value)
    return changed


def _changed_at(ops: list[ast.cmpop], place: int) -> list[Any]:
    return [OTHERS[type(op)]() if index == place else op for index, op in enumerate(ops)]


def _other_value(value: bool | float | str) -> bool | float | str:
    match value:
        case bool():
            return not value
        case str():
            return f"{value}?"
        case _:
            return value + 1 if isinstance(value, int) else 2 * value or 1.0


# --- running tests ----------------------------------------------------------------------------------------------------


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives other code for one module."""

    def __init__(self, name: str, file: Path, code: CodeType) -> None:
        self._name, self._file, self._code = name, file, code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        return (
            importlib.util.spec_from_file_location(fullname, self._file, loader=self)
            if fullname == self._name
            else None
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def run_tests(tests: list[str], prepare: Callable[[], object], finish: Callable[[], object], seconds: float) -> bool:
    """Whether all of `tests` pass within `seconds`, in a fork."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # whose signal ends the process
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        import pytest

        prepare()
        code = int(pytest.main([*OPTIONS, *tests]))
        finish()
    finally:
        os._exit(code)


def executed_lines(file: Path, tests: list[str], note: Path) -> set[int]:
    """The lines of `file` that the tests execute; loads the libraries that they load."""
    lines: set[int] = set()

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        lines.add(frame.f_lineno)
        return local

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename == str(file) else None

    def tell() -> None:
        sys.settrace(None)
        loaded = [name for name in sys.modules if name.split(".")[0] in LIBRARIES]
        note.write_text(json.dumps([sorted(lines), loaded]))

    if not run_tests(tests, lambda: sys.settrace(entered), tell, LONGEST):
        sys.exit(f"The tests fail as they are: pytest {' '.join(tests)}")
    found, loaded = json.loads(note.read_text())
    for name in loaded:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return set(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("module", type=Path)
    options.add_argument("tests", nargs="+")
    options.add_argument("--mutants", type=int, default=60, help="a sample of so many of all")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    file = asked.module.resolve()
    package = next(folder for folder in reversed(PACKAGES) if file.is_relative_to(folder))
    name = ".".join(file.relative_to(package).with_suffix("").parts)
    sys.path[:0] = [str(folder) for folder in PACKAGES]
    known = list(mutants(file.read_text()))
    sample = random.Random(asked.seed).sample(known, min(asked.mutants, len(known)))

    def passes(tree: ast.Module, seconds: float) -> bool:
        importer = _Importer(name, file, compile(ast.fix_missing_locations(tree), str(file), "exec"))
        return run_tests(asked.tests, lambda: sys.meta_path.insert(0, importer), bool, seconds)

    with tempfile.TemporaryDirectory() as folder:
        lines = executed_lines(file, asked.tests, Path(folder) / "note")
    started = time.perf_counter()
    assert passes(ast.parse(file.read_text()), LONGEST), "the tests fail with the module as it is"
    seconds, survived = 20 + 5 * (time.perf_counter() - started), 0
    for mutant in sorted(sample, key=lambda mutant: mutant.line):
        run = mutant.line in lines
        if not run or passes(mutant.tree, seconds):
            survived += 1
            print(f"{asked.module}:{mutant.line}: {mutant.change}{'' if run else '  (no test runs it)'}", flush=True)
    print(f"{asked.module}: {len(sample)} of {len(known)} mutants tried, {len(sample) - survived} noticed")


if __name__ == "__main__":
    main()
