"""Documents from files of every kind; what cannot be used is refused in one sentence."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from awq_engine import text_sources
from awq_engine.errors import BadInputError, NetworkError, UsageError
from awq_engine.text_sources import Documents, load_documents

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


class Template:
    """A tokenizer's chat template, as far as it is needed here."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool) -> str:
        assert not tokenize
        return "".join(f"<{message['role']}>{message['content']}" for message in conversation)


class NoTemplate:
    def apply_chat_template(self, conversation: Any, *, tokenize: bool) -> str:
        raise ValueError("Cannot use chat template functions because tokenizer.chat_template is not set. More words.")


def load(spec: object, max_chars: int = 1 << 20, tokenizer: Any = None) -> Documents:
    return load_documents(str(spec), tokenizer or Template(), max_chars, lambda: ["built", "in"])


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(spec: object, part: str, **options: Any) -> None:
    with pytest.raises(BadInputError, match=part):
        load(spec, **options)


def test_builtin_is_what_the_caller_says() -> None:
    assert load("builtin") == Documents(["built", "in"], "builtin", mixed=True)


def test_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("zwei\nZeilen – ü\n", encoding="utf-8")
    assert load(file) == Documents(["zwei\nZeilen – ü\n"], str(file))


def test_lines_hold_text_or_messages(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"messages": MESSAGES}, {"text": " "})
    assert load(file).texts == ["one", "<user>hi<assistant>ho"]


def test_parquet_rows_hold_text_or_messages(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), file)
    assert load(file).texts == ["one", "two"]
    parquet.write_table(pyarrow.table({"messages": [MESSAGES]}), file)
    assert load(file).texts == ["<user>hi<assistant>ho"]


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("third")
    jsonl(tmp_path / "a.jsonl", {"text": "first"})
    (tmp_path / "notes.md").write_text("not read")
    found = load(tmp_path)
    assert found.texts == ["first", "second", "third"]
    assert found.detail == "1 files of other kinds left out"


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\n\n"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "There is no text in")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.txt", "cannot be read: No such file")
    refused(tmp_path / "odd.docx", "is no text that can be used")
    (tmp_path / "folder.txt").mkdir()
    refused(tmp_path / "folder.txt", r"holds no \.txt")


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc\xe9def")
    refused(file, r"is not UTF-8 text \(byte 0xe9 at 3\)")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", r"Line 2 of .* is not JSON"),
        ("[" * 100_000, r"Line 2 of .* is not JSON"),
        ('{"content": "x"}', r'no "text" or "messages" with text or messages in line 2'),
        ("[1]", "in line 2"),
        ('{"text": 5}', "in line 2"),
        ('{"messages": ["x"]}', "cannot render the messages in line 2"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, part: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line)
    refused(file, part)


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"messages": MESSAGES})
    refused(file, r"cannot render the messages in line 1 .*chat_template is not set\.$", tokenizer=NoTemplate())


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 not really")
    refused(file, "is not a readable parquet file")
    parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), file)
    refused(file, "no column text or messages; its columns are id, body")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow: pip install"):
        load(tmp_path / "a.parquet")


def test_huge_text_is_read_in_whole_lines_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sources, "MAX_READ", 64 * 300)
    file = tmp_path / "a.txt"
    file.write_text("".join(f"line {number:05d} ü\n" for number in range(20_000)), encoding="utf-8")
    found = load(file)
    lines = [line for text in found.texts for line in text.splitlines()]
    assert all(len(line) == len("line 00000 ü") for line in lines)
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers[0] == 0
    assert numbers[-1] > 19_500
    assert numbers == sorted(set(numbers))
    assert "of the 280 kB of a.txt read, from 64 places" in found.detail


def test_huge_lines_of_json_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sources, "MAX_READ", 64 * 300)
    file = jsonl(tmp_path / "a.jsonl", *({"text": f"number {number}"} for number in range(5000)))
    assert all(text.startswith("number ") for text in load(file).texts)


def test_huge_parquet_is_read_in_row_groups_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"row {number}" for number in range(100)]}), file, row_group_size=10)
    monkeypatch.setattr(text_sources, "MAX_READ", file.stat().st_size // 3)
    found = load(file)
    assert "row groups of a.parquet read" in found.detail
    assert found.texts[0] == "row 0"
    assert len(found.texts) < 100
    assert "row 99" in found.texts or "row 80" in found.texts


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_dataset_is_streamed_only_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options))
        return ({"body": "x" * 10} for _ in range(1_000_000))

    fake_datasets(monkeypatch, load_dataset)
    found = load("hub:org/data:en:validation:body", max_chars=95)
    assert asked == [("org/data", "en", {"split": "validation", "streaming": True})]
    assert (len(found.texts), found.detail) == (10, "the first 10 rows")
    load("hub:org/data:::body", max_chars=1)
    assert asked[-1] == ("org/data", None, {"split": "train", "streaming": True})


def test_dataset_errors_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_split(*_: object, **__: object) -> Any:
        raise ValueError('Unknown split "nope".\nmore')

    fake_datasets(monkeypatch, no_such_split)
    refused("hub:org/data::nope", 'cannot be loaded: Unknown split "nope"')

    def offline(*_: object, **__: object) -> Any:
        raise ConnectionError("no route")

    fake_datasets(monkeypatch, offline)
    with pytest.raises(NetworkError, match="cannot be reached"):
        load("hub:org/data")


def test_dataset_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the datasets package: pip install"):
        load("hub:org/data")


@pytest.mark.parametrize("spec", ["hub:", "hub:a:b:c:d:e"])
def test_malformed_dataset_spec_shows_the_form(spec: str) -> None:
    with pytest.raises(UsageError, match=r"not of the form hub:DATASET"):
        load(spec)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "day"}', encoding="utf-8-sig")
    expected = "day" if name == "a.jsonl" else '{"text": "day"}'
    assert load(tmp_path / name).texts == [expected]
