"""Write docs/reference/ from the code itself: commands and options, keys of the app, events of a run, errors.

    python scripts/write_reference.py

`tests/engine/test_reference_pages.py` fails while the pages are not what this writes.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from error_sentences import error_sentences
from textual.binding import Binding
from textual.dom import DOMNode

import awq_tui
from awq_engine import events
from awq_engine.cli import build_parser
from awq_engine.errors import ExitCode

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
WRITTEN = "Written by `scripts/write_reference.py` from the code."
EXITS = {
    ExitCode.OK: "done",
    ExitCode.BUG: "a bug of ours, with a report; or the written files did not compute what was meant",
    ExitCode.BAD_INPUT: "an option, file, folder, model or text that cannot be used",
    ExitCode.NO_RESOURCES: "not enough memory or disk",
    ExitCode.NETWORK: "the Hub: offline, unknown, gated, broken",
    ExitCode.INTERRUPTED: "cancelled or interrupted; `awq-tui resume` goes on",
}


def commands_page() -> str:
    """The command line as argparse knows it."""
    parser = build_parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Commands",
        "",
        WRITTEN,
        "",
        "`awq-tui` alone opens the app. Results go to stdout, progress to stderr.",
        "",
        *_table(parser),
    ]
    lines += ["| exit code | |", "|---:|---|", *(f"| {int(code)} | {EXITS[code]} |" for code in ExitCode), ""]
    for name, command in subparsers.choices.items():
        usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ")).strip()
        lines += [f"## {name}", "", command.description or "", "", "```", usage, "```", "", *_table(command)]
    return "\n".join(lines)


def _table(parser: argparse.ArgumentParser) -> list[str]:
    """Its options and words; without commands, which have tables of their own."""
    actions = [a for a in parser._actions if a.dest != "help" and not isinstance(a, argparse._SubParsersAction)]
    return ["| | |", "|---|---|", *(f"| {_names(action)} | {_help(action)} |" for action in actions), ""]


def _names(action: argparse.Action) -> str:
    metavar = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
    return f"`{', '.join(action.option_strings) or action.metavar or action.dest}{metavar}`"


def _help(action: argparse.Action) -> str:
    text = str(action.help or "").replace("%%", "%").replace("|", "\\|")
    if action.choices:
        text = f"{text}{': ' if text else ''}{', '.join(f'`{choice}`' for choice in action.choices)}"
    default = action.default
    named = "default" in text or default in (None, False, [], argparse.SUPPRESS) or not action.option_strings
    return text if named else f"{text} (default `{default}`)"


def events_page() -> str:
    """The lines of a run's journal."""
    lines = [
        "# Events of a run", "", WRITTEN, "",
        "A run's folder has `journal.jsonl`, one JSON object a line: `seq`, `time` (Unix seconds), `kind`, and the",
        "fields below. Readers must skip kinds and fields they do not know.", "",
    ]  # fmt: skip
    for event in sorted(events.Event.__subclasses__(), key=lambda each: each.kind()):
        lines += [f"## {event.kind()}", "", _own_words(event), ""]
        rows = [f"| `{name}` | `{kind}` | {text} |" for name, kind, text in _fields(event)]
        lines += ["| field | | |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join(lines)


def _own_words(event: type[events.Event]) -> str:
    text = event.__doc__ or ""
    return "" if text.startswith(f"{event.__name__}(") else inspect.cleandoc(text).replace("\n", " ")


def _fields(event: type[events.Event]) -> Iterator[tuple[str, str, str]]:
    """Name, type and the string that follows each field in the source."""
    body = ast.parse(inspect.getsource(event)).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = {field.name for field in dataclasses.fields(event)}
    for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            if statement.target.id in fields:
                words = inspect.cleandoc(str(said)).replace("\n", " ").replace("|", "\\|") if said else ""
                yield statement.target.id, ast.unparse(statement.annotation).replace("|", "or"), words


def keys_page() -> str:
    """What every key of ours does, by screen."""
    lines = [
        "# Keys", "", WRITTEN, "",
        "The help of every screen (`?`) lists those that work there; lists and fields have Textual's usual ones too.",
        "An id is what a key is called in [`config.toml`](../configuration.md).", "",
    ]  # fmt: skip
    for module, nodes in itertools.groupby(_with_keys(), key=lambda node: node.__module__):
        title = module.rpartition(".")[2].replace("_", " ").capitalize()
        lines += [f"## {'Everywhere' if title == 'App' else title}", ""]
        bindings: list[Binding] = []
        for node in nodes:
            lines += [*_escaped(vars(node).get("HELP") or "").splitlines(), ""]
            bindings += _own_keys(node)
        lines += ["| key | | id |", "|---|---|---|", *map(_key_row, bindings), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _with_keys() -> list[type[DOMNode]]:
    """The app, its screens and its widgets that have keys with an id, those of a module one after the other."""
    modules = [importlib.import_module(each.name) for each in pkgutil.walk_packages(awq_tui.__path__, "awq_tui.")
               if not each.name.endswith("__main__")]  # fmt: skip
    found = {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, DOMNode) and each.__module__.startswith("awq_tui")
    }
    return sorted((each for each in found if any(_own_keys(each))), key=lambda each: (each.__module__, each.__name__))


def _own_keys(node: type[DOMNode]) -> list[Binding]:
    bindings = vars(node).get("BINDINGS", [])
    return [binding for binding in bindings if isinstance(binding, Binding) and binding.id]


def _key_row(binding: Binding) -> str:
    keys = " ".join(f"`{KEY_NAMES.get(key, key)}`" for key in binding.key.split(","))
    return f"| {keys} | {f'{binding.description}. {binding.tooltip}'.strip()} | `{binding.id}` |"


KEY_NAMES = {"question_mark": "?", "slash": "/", "plus": "+", "minus": "-", "equals_sign": "="}


def _escaped(text: str) -> str:
    return re.sub(r"([*_<|])", r"\\\1", inspect.cleandoc(text))


def errors_page() -> str:
    """Every sentence an error can say, by the exit code it ends with."""
    lines = [
        "# Errors", "", WRITTEN, "",
        "What an error can say, by exit code and by the module that says it; words in italics are filled in. The app",
        "shows the same sentences. What else goes wrong is a bug: exit code 1 and a report in `crashes/`, beside the",
        "runs.", "",
    ]  # fmt: skip
    for code, modules in sorted(error_sentences().items()):
        lines += [f"## {int(code)}: {EXITS[code]}", ""]
        for module, sentences in modules.items():
            lines += [f"### {module}".replace("_", "\\_"), "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join(lines)


PAGES = {"commands.md": commands_page, "keys.md": keys_page, "events.md": events_page, "errors.md": errors_page}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page().rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
