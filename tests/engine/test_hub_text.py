"""Data sets on the Hub: the real `datasets` library against a Hub on loopback, and against a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from awq_engine.errors import UsageError
from awq_engine.hub_text import HubText, parse_hub_spec
from awq_engine.text_sources import load_documents
from tests.engine.fake_hub import COMMIT, fake_hub, run_python

ROWS = [{"body": f"row {number}", "messages": [{"role": "user", "content": "hi"}]} for number in range(3)]
FILES = {
    "train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "test.jsonl": json.dumps({"body": "held out", "messages": []}).encode(),
}
TRY_ALL = """
import json, sys
from awq_engine.errors import AwqError
from awq_engine.text_sources import load_documents

class Template:
    chat_template = "x"
    def apply_chat_template(self, messages, *, tokenize):
        return " ".join(message["content"] for message in messages)

for spec, max_chars in json.loads(sys.argv[1]):
    try:
        found = load_documents(spec, Template(), max_chars, list)
        print(json.dumps([found.source, found.texts, found.detail]))
    except AwqError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def try_all(endpoint: str, home: Path, specs: list[str], max_chars: int = 1000, **environment: str) -> list[list[str]]:
    """What each spec gives, in one interpreter, as importing the library takes seconds."""
    tries = json.dumps([(spec, max_chars) for spec in specs])
    done = run_python(f"import sys; sys.argv.append({tries!r})\n{TRY_ALL}", endpoint, home, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_are_streamed_from_the_commit_that_the_source_names(tmp_path: Path) -> None:
    specs = ["hub:org/data", "hub:org/data@main::test:body", "hub:org/data:::body"]
    with fake_hub(FILES) as hub:
        whole, held_out, column = try_all(hub.url, tmp_path, specs)
        asked = [line.split("/resolve/")[1] for line in hub.requests if "GET /datasets/org/data/resolve/" in line]
    assert whole == [f"hub:org/data@{COMMIT[:12]}", ["hi"] * 3, ""]
    assert held_out == [f"hub:org/data@{COMMIT[:12]}::test:body", ["held out"], ""]
    assert column == [f"hub:org/data@{COMMIT[:12]}:::body", ["row 0", "row 1", "row 2"], ""]
    assert asked
    assert all(line.startswith(COMMIT) for line in asked)


def test_what_is_not_there_is_named_with_what_is_like_it(tmp_path: Path) -> None:
    specs = ["hub:org/data::trian", "hub:org/data:::boddy", "hub:org/data:x", "hub:org/nope", "hub:gated/data"]
    with fake_hub(FILES) as hub:
        split, column, config, nope, gated = try_all(hub.url, tmp_path, specs)
    assert split == ["BadInputError", "'hub:org/data::trian' has no split 'trian'; did you mean train?"]
    assert column == ["BadInputError", "'hub:org/data:::boddy' has no column 'boddy'; did you mean body?"]
    assert config == ["BadInputError", "'org/data' has no configuration 'x'; there is default."]
    assert nope[0] == gated[0] == "NetworkError"
    assert "There is no datasets/org/nope on the Hub, or it is private" in nope[1]
    assert f"accept its licence at {hub.url}/datasets/gated/data" in gated[1]


def test_only_as_many_rows_as_needed_and_no_network_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, content in FILES.items():
        (tmp_path / "data" / name).write_bytes(content)
    folder = f"hub:{tmp_path / 'data'}:::body"
    some, offline, empty = try_all(
        "http://127.0.0.1:1", tmp_path, [folder, "hub:org/data", f"hub:{tmp_path / 'absent'}"], 7, HF_HUB_OFFLINE="1"
    )
    assert some == [folder, ["row 0", "row 1"], "only the first documents read: 2"]
    assert offline[0] == "NetworkError"
    assert offline[1].startswith("Offline mode is on (HF_HUB_OFFLINE)")
    assert empty[0] == "BadInputError"
    assert "cannot be loaded: Couldn't find any data file" in empty[1]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the datasets package: pip install 'awq-tui\\[datasets\\]'"):
        load_documents("hub:org/data", None, 1, list)


def test_parts_of_a_spec() -> None:
    assert parse_hub_spec("hub:org/data") == HubText("org/data", None, None, None, None)
    assert parse_hub_spec("hub:org/data@v2:en:test:body") == HubText("org/data", "v2", "en", "test", "body")
    assert parse_hub_spec("hub:org/data:::body") == HubText("org/data", None, None, None, "body")


@pytest.mark.parametrize("spec", ["hub:", "hub:a:b:c:d:e", "hub:@main"])
def test_malformed_spec_shows_the_form(spec: str) -> None:
    with pytest.raises(UsageError, match=r"not of the form hub:DATASET\[@REVISION\]\[:CONFIG\]"):
        parse_hub_spec(spec)
