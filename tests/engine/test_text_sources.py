"""Documents from files of every kind; what cannot be used is refused in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from awq_engine import text_sources
from awq_engine.documents import Document, Documents
from awq_engine.errors import BadInputError, UsageError
from awq_engine.text_sources import load_documents

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


class Template:
    """A tokenizer's chat template, as far as it is needed here."""

    chat_template: str | None = "there is one"

    def apply_chat_template(self, conversation: Any, *, tokenize: bool) -> str:
        assert not tokenize
        return "".join(f"<{message['role']}>{message['content']}" for message in conversation)


def load(spec: object, max_chars: int = 1 << 20, tokenizer: Any = None) -> Documents:
    return load_documents(str(spec), tokenizer or Template(), max_chars, lambda: ["built", "in"])


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(spec: object, part: str, **options: Any) -> None:
    with pytest.raises(BadInputError, match=part):
        load(spec, **options)


def test_builtin_is_what_the_caller_says() -> None:
    assert load("builtin") == Documents([Document("built"), Document("in", number=1)], "builtin", mixed=True)


def test_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("zwei\nZeilen – ü\n", encoding="utf-8")
    assert load(file) == Documents([Document("zwei\nZeilen – ü\n")], str(file))


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
    assert found.detail == "files of other kinds, left out: 1"


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\n\n"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "There is no text in")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.txt", "cannot be read: No such file")
    refused(tmp_path / "odd.docx", "is no text that can be used")
    (tmp_path / "folder.txt").mkdir()
    refused(tmp_path / "folder.txt", r"holds no \.txt, \.jsonl, \.json or \.parquet file")


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc\xe9def")
    refused(file, r"is not UTF-8 text \(byte 0xe9 at 3\)")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "lines that are not JSON, left out: 1 (first line 2 of"),
        ("[" * 100_000, "lines that are not JSON, left out: 1 (first line 2 of"),
        ('{"id": 5, "body": "x"}', "line 2 of {file}: no text or messages under any known name; it has id, body)"),
        ("{}", "line 2 of {file}: no text or messages under any known name; it has nothing)"),
        ("[1]", "rows that cannot be used, left out: 1 (first line 2 of {file}: a row is no object but list)"),
        ("null", "a row is no object but NoneType"),
        ('{"text": 5}', "no text or messages under any known name"),
        ('{"messages": ["x"]}', "line 2 of {file}: a message has no role)"),
        ('{"messages": []}', "its messages have no text"),
        ('{"text": " "}', "texts with nothing in them, left out: 1 (first line 2"),
    ],
)
def test_bad_line_is_left_out_counted_and_named(tmp_path: Path, line: str, part: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line)
    found = load(file)
    assert found.texts == ["fine"]
    assert part.format(file=file) in found.detail
    file.write_text(line)
    refused(file, "There is no text in .* left out: 1")


def test_bad_files_of_a_folder_are_left_out_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    found = load(tmp_path)
    assert found.texts == ["good"]
    assert "files that cannot be used, left out: 2 (first" in found.detail
    assert "b.txt is not UTF-8 text" in found.detail


def test_json_file_is_a_list_of_rows_or_has_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": "one"}, {"nothing": 1}, {"text": "two"}], indent=1))
    found = load(file)
    assert found.texts == ["one", "two"]
    assert f"left out: 1 (first row 1 of {file}" in found.detail
    jsonl(file, {"text": "three"}, {"text": "four"})
    assert load(file).texts == ["three", "four"]
    file.write_text('{"text": "five"}')
    assert load(file).texts == ["five"]


def test_no_more_rows_are_rendered_than_the_tokens_asked_for_take(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"text": f"number {number:04d}"} for number in range(4000)))
    found = load(file, max_chars=1000)
    assert 1000 < sum(map(len, found.texts)) < 12_000
    assert found.texts[0] == "number 0000"
    assert found.texts[-1] > "number 3800"
    assert f"of 4000 rows: {len(found.texts)}" in found.detail


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 not really")
    refused(file, "is not a readable parquet file")
    parquet.write_table(pyarrow.table({"id": [1], "body": ["x"]}), file)
    refused(file, "no column with text or messages; its columns are id, body")


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
    assert "of the 280 kB of a.txt read, places: 64" in found.detail


def test_huge_lines_of_json_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sources, "MAX_READ", 64 * 300)
    file = jsonl(tmp_path / "a.jsonl", *({"text": f"number {number}"} for number in range(5000)))
    assert all(text.startswith("number ") for text in load(file).texts)


def test_huge_parquet_is_read_in_row_groups_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"row {number}" for number in range(100)]}), file, row_group_size=10)
    monkeypatch.setattr(text_sources, "MAX_READ", file.stat().st_size // 3)
    found = load(file)
    assert "row groups of the 10 of a.parquet read: " in found.detail
    assert found.texts[0] == "row 0"
    assert len(found.texts) < 100
    assert "row 99" in found.texts or "row 80" in found.texts


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "day"}', encoding="utf-8-sig")
    expected = "day" if name == "a.jsonl" else '{"text": "day"}'
    assert load(tmp_path / name).texts == [expected]
