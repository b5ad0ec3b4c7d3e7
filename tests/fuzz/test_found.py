"""What fuzzing found, each by its name: it was a traceback, a hang or a wrong sentence once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awq_engine.checkpoint import read_checkpoint, read_header
from awq_engine.commands.console import result_json
from awq_engine.config import RunFile
from awq_engine.demo import MODEL
from awq_engine.errors import AwqError, BadInputError, NetworkError, UsageError, as_known_error, last_clause
from awq_engine.evaluations import read_evaluation
from awq_engine.events import Record
from awq_engine.fingerprint import stored_threads
from awq_engine.hub_errors import describe
from awq_engine.models import parse_model
from awq_engine.paths import typed_path
from awq_engine.runs import Run
from awq_engine.skeleton import build_skeleton
from awq_engine.tensor_files import open_tensors
from awq_engine.writer import write_json
from awq_kernels.tuning import read_measured
from tests.engine.rounded_checkpoint import edit_config, write_float_folder
from tests.fuzz.parsers import CHAT, PARSERS

DEEP = b"[" * 5000 + b"]" * 5000


def parse(name: str, data: Any, folder: Path) -> None:
    """Give one of the table's parsers an input."""
    parser = next(parser for parser in PARSERS if parser.name == name)
    parser.prepare(folder)
    parser.parse(data if isinstance(data, bytes) else json.dumps(data).encode(), folder)


def safetensors(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("shard", ["a" * 10_000, "../x.safetensors", "/etc/passwd", "", "."])
def test_shard_names_that_are_no_file_of_the_folder(shard: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(BadInputError, match=r"no file of its own folder|lacks the shard") as caught:
        read_checkpoint(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12, "does not begin where the one before it ends"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4, "does not begin where"),
        ({"a": entry([1], 0, 4)}, 12, "8 bytes that belong to no tensor"),
        ({"a": entry([10**400], 0, 4)}, 4, "damaged"),
        ({"a": entry([1] * 1000, 0, 4)}, 4, "damaged"),
    ],
)
def test_headers_that_the_library_would_refuse_later(header: Any, data: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors(header, bytes(data)))
    with pytest.raises(BadInputError, match=words):
        read_header(file)


def test_a_product_of_dimensions_that_takes_minutes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors({"a": {"dtype": "X", "shape": [10**4000] * 2000, "data_offsets": [0, 0]}}))
    started = time.perf_counter()
    with pytest.raises(BadInputError, match="damaged"):
        read_header(file)
    assert time.perf_counter() - started < 5


def test_what_safetensors_refuses_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(BadInputError, match=r"x\.safetensors cannot be read: .*\.$"), open_tensors(file):
        pass


@pytest.mark.parametrize("version", ["Infinity", "1e999", "[]", "{}", '"x"', "null"])
def test_a_version_of_run_json_that_is_no_number(version: str) -> None:
    with pytest.raises(BadInputError):
        RunFile.loads(f'{{"version": {version}, "run_id": "r", "created": 1, "config": {{}}}}', "run.json")


@pytest.mark.parametrize("config", [None, [], "x", 5])
def test_a_config_of_run_json_that_is_no_object(config: Any) -> None:
    with pytest.raises(BadInputError, match="no JSON object"):
        RunFile.loads(json.dumps({"version": 1, "run_id": "r", "created": 1, "config": config}), "run.json")


@pytest.mark.parametrize(
    "changes",
    [{"block": []}, {"block": "0"}, {"block": 1 << 63}, {"name": 3}, {"seq": "1"}, {"time": float("nan")}, {"time": -1},
     {"time": 10**400}, {"seconds": None}, {"losses": {"rounding": "x"}}, {"losses": []}],
    ids=str,
)  # fmt: skip
def test_journal_lines_with_values_of_other_types(changes: dict[str, Any]) -> None:
    """They are left out and counted, as lines of a newer version are."""
    good = {
        "seq": 1, "time": 5.0, "kind": "linear_quantized", "block": 0, "name": "q", "out_features": 8, "in_features": 8,
        "losses": {"rounding": 1.0}, "weight_mse_rounding": 1.0, "weight_mse_final": 1.0, "clipped_share": 0.0,
        "seconds": 1,
    }  # fmt: skip
    assert Record.from_json(good) is not None
    assert Record.from_json({**good, **changes}) is None


def test_a_plan_in_the_journal_whose_linears_lack_their_shape() -> None:
    parser = next(parser for parser in PARSERS if parser.name == "journal")
    line = json.loads(next(line for line in parser.seeds(Path("/nowhere"))[0].split(b"\n") if b"plan_ready" in line))
    assert Record.from_json(line) is not None
    del line["linears"][0]["in_features"]
    assert Record.from_json(line) is None


@pytest.mark.parametrize("value", ["9" * 30, "1e300", "-5", "NaN"])
def test_a_conversation_of_no_possible_date(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    chat = b'{"models": [], "created": %s, "updated": 1, "system": "", "sampling": {}, "turns": []}' % value.encode()
    with pytest.raises(BadInputError, match="dates"):
        parse("conversations", chat, tmp_path)


@pytest.mark.parametrize("reply", [[], {}, "", 0, False])
def test_replies_that_are_nothing_but_not_null(reply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    turn = {"question": "Hi?", "replies": [reply, None]}
    with pytest.raises(BadInputError, match="not a conversation that this version can read"):
        parse("conversations", {**CHAT, "turns": [turn]}, tmp_path)


def test_nested_values_in_the_settings_of_a_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    chat = {"models": [], "created": 1, "updated": 1, "system": "", "sampling": {"seed": {"a": []}}, "turns": []}
    with pytest.raises(BadInputError, match="seed"):
        parse("conversations", chat, tmp_path)


@pytest.mark.parametrize(
    "line",
    [b'{"type": "prompt", "id": "1", "done": Infinity, "total": 2}', DEEP,
     b'{"type": "ready", "model": "m", "backend": "b", "reason": "r", "device": "d", "context_length": [], '
     b'"bits_per_weight": 4, "has_chat_template": true}'],
)  # fmt: skip
def test_replies_of_the_chat_worker_that_mean_nothing(line: bytes, tmp_path: Path) -> None:
    parse("replies of the chat worker", line, tmp_path)


def test_deep_nesting_in_files_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_bytes(DEEP)
    (tmp_path / "launches.json").write_bytes(DEEP)
    (tmp_path / "evaluation.json").write_bytes(DEEP)
    with pytest.raises(BadInputError):
        stored_threads(Run(tmp_path))
    assert read_measured(tmp_path / "launches.json").measured == {}
    assert read_evaluation(Run(tmp_path)) is None


@pytest.mark.parametrize("changes", [{"perplexity": []}, {"kl": 10**400}, {"tokens": "5"}, {"text": None}])
def test_measurements_of_other_types(changes: dict[str, Any], tmp_path: Path) -> None:
    good = {"text": "t", "tokens": 1, "seq_len": 1, "perplexity": 1.0, "perplexity_original": None, "kl": 0.1,
            "kl_error": None, "top1_agreement": 1.0}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps({"result": good}))
    assert read_evaluation(Run(tmp_path)) is not None
    (tmp_path / "evaluation.json").write_text(json.dumps({"result": {**good, **changes}}))
    assert read_evaluation(Run(tmp_path)) is None


@pytest.mark.parametrize("text", ["a\0b", "~nobody-of-this-name/x", "x" * 300, "./" + "y/" * 3000])
def test_words_that_cannot_be_a_path(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be a path|home folder of a user"):
        typed_path(text)
    with pytest.raises(AwqError):
        parse_model(text)


@pytest.mark.parametrize("text", ["~", "~x", "~nobody-of-this-name", "\0", "a" * 5000])
def test_words_typed_into_the_form(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app is asked after every key: `~x` is on the way to `~xavier/models`."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    parse("words typed", text.encode(), tmp_path)


@pytest.mark.parametrize("body", [b"[]", b"5", b"[5]", b'[{"id": 5}]', b'[{"id": "a/b", "tags": 3}]', DEEP, b"null"])
@pytest.mark.parametrize("name", ["search of the Hub", "listing on the Hub", "headers on the Hub"])
def test_replies_of_the_hub_in_other_shapes(name: str, body: bytes, tmp_path: Path) -> None:
    try:
        parse(name, body, tmp_path)
    except AwqError as error:
        assert str(error).endswith((".", "?"))  # noqa: PT017


def test_a_reply_of_the_hub_without_a_commit(tmp_path: Path) -> None:
    """Its client asserts that there is one."""
    with pytest.raises(NetworkError, match="cannot be understood"):
        parse("listing on the Hub", {"info": {"id": "org/tiny", "siblings": []}, "tree": []}, tmp_path)


def test_settings_of_a_quantization_as_long_as_a_book(tmp_path: Path) -> None:
    settings = {"quant_method": "awq", "version": "a" * 10_000, "bits": "b" * 10_000}
    with pytest.raises(BadInputError, match="is an AWQ model of version aaaa") as caught:
        parse("awq settings", {"model_type": "llama", "quantization_config": settings}, tmp_path)
    assert len(str(caught.value)) < 600


def test_a_stumbling_client_library_is_the_networks_fault_and_ours_is_not() -> None:
    assert describe(KeyError("ours"), "org/x") is None


@pytest.mark.parametrize("settings", [b'{"model_max_length": "self"}', b"1000000", b'{"tokenizer_class": 5}'])
def test_tokenizer_settings_of_other_types(settings: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no tokenizer that can be used"):
        parse("tokenizer_config.json", settings, tmp_path)


def test_numbers_that_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    result_json({"a": [float("nan"), {"b": float("inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": 1.5}


def test_sentences_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_clause(ValueError("no end")) == "no end."
    assert last_clause(ValueError("an end.\nmore")) == "an end."
    assert len(last_clause(ValueError("x" * 5000))) < 400
    assert last_clause(ValueError()) == "ValueError."


@pytest.mark.parametrize("number", [13, 5, 24, 27, 30, 36])
def test_what_the_system_refuses_is_no_bug(number: int) -> None:
    known = as_known_error(OSError(number, "said", "/x/file"))
    assert known is not None
    assert str(known).endswith((".", "!"))


def test_nothing_is_told_to_the_hub_about_this_machine() -> None:
    """huggingface_hub would fetch a list of programs to look for in the environment and report what it finds."""
    code = "import awq_engine; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def change_exported(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Give an export a model whose file `name` is changed."""
    parser = next(parser for parser in PARSERS if parser.name == f"exported {name}")
    parser.prepare(folder)
    data = json.loads(parser.seeds(folder)[0])
    change(data)
    parser.parse(json.dumps(data).encode(), folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": {}}, "is of type {}"),
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers, more than tensors"),
        ({"num_hidden_layers": 10**30}, "is no size"),
        ({"max_position_embeddings": float("inf")}, "is no size"),
        ({"head_dim": float("inf")}, "is no size"),
        ({"rms_norm_eps": "small"}, "is no number"),
        ({"rms_norm_eps": 1e308}, "fits into no GGUF file"),
        ({"num_attention_heads": 5}, "says 5 heads"),
        ({"rope_parameters": [1]}, "states its rotary embedding wrongly"),
        ({"rope_parameters": {"rope_theta": "x"}}, "states its rotary embedding wrongly"),
    ],
)  # fmt: skip
def test_a_config_that_an_export_cannot_use(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(words)):
        change_exported(tmp_path, "config.json", lambda config: config.update(changes))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("layers", [3_000, 10**9, 10**400])
def test_endless_layers_are_not_built(model_type: str, layers: int, tmp_path: Path) -> None:
    """Qwen's config makes a list of them, Llama's model makes them."""
    model = write_float_folder(tmp_path / "model")
    edit_config(model, model_type=model_type, num_hidden_layers=layers)
    with pytest.raises(BadInputError, match=r"no model has so many|far more than there are tensors"):
        build_skeleton(read_checkpoint(model))


def test_half_a_character_in_a_config_stays_an_escape(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"name": "\ud800 ä"})
    text = (tmp_path / "config.json").read_bytes()
    assert json.loads(text) == {"name": "\ud800 ä"}
    assert "ä".encode() in text


def test_a_token_that_is_no_text_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="a token is False"):
        change_exported(tmp_path, "tokenizer.json", lambda found: found["added_tokens"][1].update(content=False))


def test_an_infinite_download_is_not_listed(tmp_path: Path) -> None:
    parse(
        "state of a download", {"spec": "a", "done": 1, "total": float("inf"), "finished": False, "error": ""}, tmp_path
    )


def test_headers_on_the_hub_with_one_offset(tmp_path: Path) -> None:
    parse("headers on the Hub", safetensors({"a": {"dtype": "F32", "shape": [], "data_offsets": [48]}}), tmp_path)


def test_tool_calls_that_are_no_list(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="tool_calls are int, not a list"):
        parse("text in JSON", {"messages": [{"role": "assistant", "content": None, "tool_calls": 2}]}, tmp_path)


def test_a_tokenizer_that_its_library_does_not_survive(tmp_path: Path) -> None:
    """Its template has a token that it does not list: the library panics, and a panic is no `Exception`."""
    found = json.loads((Path(str(MODEL)) / "tokenizer.json").read_text())
    del found["post_processor"]["special_tokens"]["<s>"]
    with pytest.raises(BadInputError, match="no tokenizer that can be used: no entry found for key"):
        parse("tokenizer.json", found, tmp_path)
