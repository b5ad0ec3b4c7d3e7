"""Everything that is parsed, as one table: where it is read, good inputs to start from, and how to damage them.

A parser is given bytes and a folder of its own. It puts the bytes where the product looks for them and does with what
was read what the product does. It returns, or raises one of our errors; anything else is a defect.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from awq_engine import events as e
from awq_engine.checkpoint import read_checkpoint, read_header
from awq_engine.config import RunConfig, RunFile
from awq_engine.demo import MODEL
from awq_engine.documents import Notes
from awq_engine.errors import AwqError
from awq_engine.evaluations import measuring
from awq_engine.formats.limits import Format
from awq_engine.runs import Run
from tests.fuzz.mutators import Mutator, mutate_bytes, mutate_header, mutate_json, mutate_lines, mutate_words

Prepare = Callable[[Path], None]
Parse = Callable[[bytes, Path], object]
Seeds = Callable[[Path], list[bytes]]


def _nothing(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Parser:
    """One reader of things that may be broken."""

    name: str
    seeds: Seeds
    """Good inputs; called once, with the prepared folder."""
    parse: Parse
    mutate: Mutator = mutate_json
    prepare: Prepare = _nothing
    share: float = 1.0
    """Of the inputs tried; less for what takes longer."""
    guided: bool = field(default=True, kw_only=True)
    """Whether coverage is watched; it costs several times what a quick parser does."""


def _saved(name: str, parse: Callable[[Path], object]) -> Parse:
    """A parser of the file `name` in the folder."""

    def run(data: bytes, folder: Path) -> object:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return parse(file)

    return run


def _of(*values: Any) -> Seeds:
    return lambda folder: [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]


# --- models -----------------------------------------------------------------------------------------------------------


def _copy_demo(folder: Path) -> None:
    for file in Path(str(MODEL)).iterdir():
        shutil.copyfile(file, folder / file.name)


def _headers(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    tensors = {"a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(2, dtype=torch.float16), "c": torch.zeros(())}
    return [save(tensors), save(tensors, {"format": "pt"}), save({})]


def _prepare_shards(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text('{"model_type": "llama"}')
    for number in (1, 2):
        save_file({f"t{number}": torch.zeros(2)}, folder / f"model-{number}.safetensors")


def _describe(file: Path) -> None:
    """All that is said about a model folder before it is loaded."""
    from awq_engine.formats.stated import read_quantization
    from awq_engine.skeleton import load_config
    from awq_tui.catalog import Where, describe_folder, facts
    from awq_tui.details import look_into

    look_into(describe_folder(file.parent, Where.DISK), None)
    checkpoint = read_checkpoint(file.parent)
    facts(checkpoint)
    if quantization := read_quantization(checkpoint):
        for linear in ("model.layers.0.mlp.up_proj", *quantization.linears(checkpoint)):
            quantization.spec_of(linear)
    load_config(checkpoint)


def _build(file: Path) -> None:
    """The model without its weights, for a run and for a chat."""
    from awq_engine.skeleton import build_skeleton

    build_skeleton(read_checkpoint(file.parent))


def _configs(folder: Path) -> list[bytes]:
    demo = json.loads((Path(str(MODEL)) / "config.json").read_text())
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear", "re:.*up"], "format": "pack-quantized", "weights": weights}
    packed = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    rules = {"+:.*up_proj": {"bits": 8}, "-:.*down": {}}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "dynamic": rules}
    rounded = {"quant_method": "auto-round", "packing_format": "auto_round:gptq", "bits": 4, "group_size": 32,
               "sym": True, "extra_config": {"model.layers.0": {"bits": 8}}}  # fmt: skip
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": demo["hidden_size"], "num_heads": 2}
    nested = {"model_type": "qwen2_vl", "text_config": demo, "vision_config": vision,
              "auto_map": {"AutoConfig": "configuration_x.XConfig"}}  # fmt: skip
    quantized = [{**demo, "quantization_config": settings} for settings in (awq, packed, gptq, rounded)]
    # small ones: what is made before it goes to the meta device can spread over gigabytes of addresses
    experts = {"model_type": "mixtral", "num_local_experts": 4, "hidden_size": 64, "intermediate_size": 64,
               "vocab_size": 512, "num_hidden_layers": 2}  # fmt: skip
    return _of(demo, *quantized, nested, experts)(folder)


def _tokenize(file: Path) -> None:
    from awq_engine.runtime import load_tokenizer
    from awq_engine.token_windows import read_tokens

    tokenizer = load_tokenizer(file.parent)
    read_tokens(str(_text_file(file.parent)), tokenizer, 64, list)
    tokenizer.decode([0, 1, 2, 300])


def _text_file(folder: Path) -> Path:
    file = folder / "words.txt"
    if not file.exists():
        file.write_text("Once upon a time there was a cat. ¡Qué día! \N{CAT FACE}\n\n" * 20)
    return file


def _demo_file(name: str) -> Seeds:
    return lambda folder: [(Path(str(MODEL)) / name).read_bytes()]


# --- chat templates and text ------------------------------------------------------------------------------------------

TEMPLATES = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message['content'] | trim }}\n{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{{ m | tojson }}"
    "{% endfor %}{{ tools | tojson if tools else '' }}{{ strftime_now('%Y') }}{{ raise_exception('no') if ns.x > 9 }}",
    "{% macro turn(m) %}[{{ m.role }}]{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
)
TEMPLATE_WORDS = (
    "{{", "}}", "{%", "%}", "{#", "#}", "messages", "messages[0]", ".content", "['role']", "tools", "| tojson",
    "| trim", "for m in messages", "endfor", "if", "else", "endif", "set x = ", "macro f(a)", "endmacro",
    "generation", "endgeneration", "range(10**9)", "range(99999)", "for i in range(99999)", "'a' * 10**10", "10**10**8",
    "x ~ x",
    "''.__class__.__mro__", "messages.__init__.__globals__", "cycler.__init__", "lipsum(n=9999)", "namespace()",
    "'%9999999999d' | format(1)", "| center(10**10)", "| indent(10**9)", "raise_exception('\x1b[2J')", "import 'x'",
    "include '/etc/passwd'", "extends 'x'", "loop.index", "self", "true", "none", "0/0", "[]*9**9", "(" * 200, "-" * 99,
    "| map('attr', '__class__') | list", "| sort", "| batch(1) | list", "break", "continue", "do x", "call f()",
)  # fmt: skip


@cache
def _demo_tokenizer() -> Any:
    from awq_engine.runtime import load_tokenizer

    return load_tokenizer(Path(str(MODEL)))


def _render(data: bytes, folder: Path) -> None:
    """As calibration renders conversations, with answers marked, and as chat does."""
    from awq_engine.conversations import Renderer
    from awq_engine.prompts import encode_prompt
    from awq_engine.rows import Conversation

    tokenizer = _demo_tokenizer()
    tokenizer.chat_template = data.decode("utf-8", "replace")
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{role} says {n}"} for n, role in enumerate(roles)]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    Renderer(tokenizer, Notes(), answers=True).render(Conversation(messages, tools), "row 1")
    loaded: Any = argparse.Namespace(tokenizer=tokenizer, path=folder)
    encode_prompt(loaded, messages[:4])


ROWS = (
    {"text": "Once upon a time."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"text": "Hello"}, {}]}],
     "tools": "[{}]"},
    {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}], "system": "Be brief."},
    {"instruction": "Say", "input": "it", "output": "it"},
    {"prompt": [{"role": "user", "content": "x"}], "chosen": [{"role": "assistant", "content": "y"}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "content": "3", "tool_call_id": "1"}]},
)  # fmt: skip


def _documents(answers: bool) -> Callable[[Path], object]:
    from awq_engine.text_sources import load_documents

    def read(file: Path) -> None:
        tokenizer = _demo_tokenizer()
        tokenizer.chat_template = TEMPLATES[0]
        load_documents(str(file), tokenizer, 10_000, list, answers)

    return read


def _json_rows(folder: Path) -> list[bytes]:
    return [json.dumps(row).encode() for row in ROWS] + [json.dumps(ROWS).encode()]


def _json_lines(folder: Path) -> list[bytes]:
    return [b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n"]


def _parquets(folder: Path) -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    tables = (
        {"text": ["Once upon a time.", "The end.", None] * 5},
        {"messages": [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]] * 3},
        {"instruction": ["a"], "output": ["b"], "other": [1]},
    )
    found = []
    for columns in tables:
        sink = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), sink)
        found.append(sink.getvalue())
    return found


# --- runs -------------------------------------------------------------------------------------------------------------


def _run_files(folder: Path) -> list[bytes]:
    config = RunConfig("org/model", "/out", overrides=("*.down_proj=skip",))
    return [RunFile("20260101-000000-model-w4", config, 1.7e9).dumps().encode()]


def _read_run(file: Path) -> None:
    """As the list of runs and the screens read it."""
    from awq_engine.commands.runs import _cells, _describe
    from awq_tui.run_book import _Entry
    from awq_tui.run_words import title_line
    from awq_tui.widgets.glyphs import UNICODE

    run = Run(file.parent)
    _cells(_describe(run))
    title_line(_Entry(run).summarize().file and run.config(), run.id, UNICODE)
    run.config()


def _journals(folder: Path) -> list[bytes]:
    from tests.engine import journals as j

    events: list[e.Event] = [j.started(), e.Queued(2), e.DownloadProgress(5, 10, "x"), j.planned(),
        e.CalibrationReady("builtin", 128, 256, 32768, 5, "a sample", [j.CALIBRATION_SOURCE] * 2, 99),
        e.PhaseProgress("calibrating", 1, 2), e.Warned("careful")]  # fmt: skip
    for block in (0, 1):
        events.append(e.BlockStarted(block, f"model.layers.{block}"))
        events.append(e.FoldTested(block, "norm", [*j.LINEARS], True, 1e-7))
        events += [j.scaled(block, name) for name in j.LINEARS]
        events += [j.quantized(block, name) for name in j.LINEARS]
        events.append(e.BlockFinished(block, 1e-3, 1e-4, 2.0, "blocks/0/block.safetensors", "ab", 1 << 30, 1 << 20))
    events += [e.BlockFellBack(1, "worse", 1e-3, 2e-3), e.PhaseProgress("writing", 3, 9), e.Verified(1e-5, 32)]
    whole = [*events, e.RunFinished(j.RESULT)]
    ended = [*events[:9], e.RunFailed("The disk is full.", 3), j.started(1), e.RunCancelled(1)]
    return [_lines(j.records(found)) for found in (whole, ended)]


def _lines(records: Iterable[e.Record]) -> bytes:
    return b"".join(json.dumps(record.to_json()).encode() + b"\n" for record in records)


def _read_journal(file: Path) -> None:
    """Everything that is made of a journal: its state, lines, rows, report, and what the screens say."""
    from awq_engine.commands.inspect import COLUMNS, ROLE_COLUMNS, _as_json, _as_table, sort_rows
    from awq_engine.commands.quantize import describe_result
    from awq_engine.commands.runs import _cells, _describe
    from awq_engine.journal import Journal
    from awq_engine.progress import ProgressLines
    from awq_engine.report import build_report, layer_rows, outliers, summarize_roles
    from awq_tui import run_words
    from awq_tui.results import RESULT_COLUMNS, result_rows
    from awq_tui.run_book import _Entry
    from awq_tui.run_client import Replay, RunClient
    from awq_tui.widgets.glyphs import UNICODE

    run = Run(file.parent)
    progress = ProgressLines()
    for record in run.records():
        progress.lines(record)
    state = progress.state
    rows = layer_rows(state)
    json.dumps(build_report(state, {}))
    for column in COLUMNS:
        sort_rows(rows, COLUMNS, column.name)
    _as_table(COLUMNS, rows)
    _as_table(ROLE_COLUMNS, summarize_roles(rows))
    _as_json("x", rows, False)
    outliers(rows)
    _cells(_describe(run))
    if state.result:
        describe_result({**state.result})
    snapshot = RunClient(run).poll()
    Replay(run).poll()
    if snapshot:
        run_words.phase_line(snapshot, UNICODE)
        run_words.times_line(snapshot, 2e9, 5.0)
        run_words.notes(snapshot, None, UNICODE)
        assert 0 <= state.fraction() <= 1
    for row in result_rows([_Entry(run).summarize()]):
        [column.text(row) for column in RESULT_COLUMNS]
    Journal(file).close()


def _prepare_run(folder: Path) -> None:
    (folder / "run.json").write_bytes(_run_files(folder)[0])


EVALUATION = {
    "settings": {"text": "builtin"},
    "result": {"text": "builtin", "tokens": 100, "seq_len": 64, "perplexity": 8.1, "perplexity_original": 8.0,
               "kl": 0.01, "kl_error": 0.001, "top1_agreement": 0.97},
}  # fmt: skip


def _measured(file: Path) -> None:
    from awq_tui.results import RESULT_COLUMNS, comparable, frontier, result_rows
    from awq_tui.run_book import _Entry

    measuring(Run(file.parent))
    rows = result_rows([_Entry(Run(file.parent)).summarize()])
    for row in rows:
        [column.text(row) for column in RESULT_COLUMNS]
        comparable(row, rows)
    frontier(rows)


def _prepare_finished(folder: Path) -> None:
    _prepare_run(folder)
    (folder / "journal.jsonl").write_bytes(_journals(folder)[0])


def _fingerprint(file: Path) -> None:
    from awq_engine.fingerprint import Fingerprint, check_fingerprint, stored_threads

    check_fingerprint(Run(file.parent), Fingerprint("a", "b", "c", "cpu", 2))
    stored_threads(Run(file.parent))


def _reports(folder: Path) -> list[bytes]:
    from awq_engine.report import build_report
    from awq_engine.state import replay

    (folder / "seed").mkdir(exist_ok=True)
    (folder / "seed" / "journal.jsonl").write_bytes(_journals(folder)[0])
    return [json.dumps(build_report(replay(Run(folder / "seed").records()), {"run_id": "r"})).encode()]


def _read_report(file: Path) -> None:
    from awq_engine.commands.inspect import inspect
    from awq_engine.report import outliers, read_report, rows_of_report
    from awq_tui.layer_columns import LAYER_COLUMNS, Order, filter_rows, sort_rows, to_csv, to_json

    for options in ({}, {"by_type": True}, {"json": True}, {"csv": True}, {"sort": "alpha"}):
        asked = {"model": str(file.parent), "sort": None, "by_type": False, "json": False, "csv": False, **options}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            inspect(argparse.Namespace(**asked))
    rows = rows_of_report(read_report(file.parent))
    for column in LAYER_COLUMNS:
        [column.text(row) for row in sort_rows(rows, LAYER_COLUMNS, Order(column.key))]
    filter_rows(rows, "down 1 outlier", outliers(rows))
    to_csv(rows, LAYER_COLUMNS)
    to_json(rows)


# --- what the app keeps -----------------------------------------------------------------------------------------------

SETTINGS = {"theme": "awq-dark", "folders": ["~/models"], "section": "models"}
RECIPES = {"mine": {"bits": 4, "group_size": 64, "preset": "fast", "method": "awq", "layout": "awq", "samples": "64",
                    "text_source": "builtin", "overrides": "", "target_bpw": ""}}  # fmt: skip
CONFIG = b"""theme = "nord"
notify = "bell"
save_chats = true
ascii = false
folders = ["~/models", "/data"]
[keys]
"chat.again" = "ctrl+r"
"""
TOML_WORDS = (
    "=", "[keys]", "[[", "]]", '"', "'''", "theme", "notify", "true", "1e999", "\n", "folders", "{a=1}", "[", "inf",
    "1979-05-27",
)  # fmt: skip
CHAT = {
    "version": 1, "models": ["org/a", "org/b"], "id": "x", "created": 1.7e9, "updated": 1.7e9, "system": "Be brief.",
    "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 5, "seed": None, "stop": ["."]},
    "turns": [{"question": "Hi?\nThere", "replies": [{"text": "<think>a</think>b", "figures": {"seed": 1}}, None]}],
}  # fmt: skip


def _in_home(name: str, parse: Callable[[], object]) -> Parse:
    """A parser of the file `name` in the folder that `AWQ_TUI_HOME` names."""
    return _saved(f"home/{name}", lambda file: parse())


def _preferences() -> None:
    from awq_tui.preferences import load_preferences

    _, problems = load_preferences()
    assert all(isinstance(problem, str) for problem in problems)


def _recipes() -> None:
    from awq_tui.draft import review
    from awq_tui.recipes import describe_recipe, load_recipes

    for draft in load_recipes().values():
        describe_recipe(draft)
        review(dataclasses.replace(draft, model="m", output="/o"), None, None, None)


def _chats() -> None:
    from awq_tui.chats import as_json, as_markdown, chats_dir, list_chats, load_chat

    list_chats("hi")
    for file in chats_dir().glob("*.json"):
        chat = load_chat(file)
        as_markdown(chat)
        as_json(chat)
        chat.messages(0)
        chat.with_models(["org/b"])
        chat.asking("What?", 1.8e9)


def _settings() -> None:
    from awq_tui.settings import load_settings

    load_settings()


def _reply(data: bytes, folder: Path) -> None:
    from awq_tui.chat_client import parse_reply

    parse_reply(data)


REPLIES = (
    {"type": "ready", "model": "m", "backend": "cpu", "reason": "r", "device": "cpu", "context_length": 99,
     "bits_per_weight": 4.2, "has_chat_template": True, "notes": ["n"]},
    {"type": "done", "id": "1", "prompt_tokens": 1, "new_tokens": 2, "tokens_per_second": 9.0, "finish_reason": "stop",
     "seconds_to_first_token": 0.1, "context_used": 3, "context_length": 99, "seed": 1},
    {"type": "text", "id": "1", "text": "Hello"}, {"type": "error", "id": None, "message": "no", "fatal": True},
    {"type": "scores", "id": "1", "tokens": [{"text": "a", "probability": 0.5, "best": "b", "best_probability": 0.6}]},
    {"type": "loading", "message": "x", "done": 1, "total": 2}, {"type": "prompt", "id": "1", "done": 1, "total": 2},
)  # fmt: skip


def _request(data: bytes, folder: Path) -> None:
    from awq_engine.chat_requests import Inbox, _take_line

    with contextlib.suppress(ValueError, RecursionError):  # what `read_requests` takes for a line that is not JSON
        found = json.loads(data)
        _take_line(found, Inbox())


REQUESTS = (
    {"type": "chat", "id": 1, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0.5,
     "stop": ["."], "seed": 3},
    {"type": "score", "id": "a", "messages": [{"role": "user", "content": "Hi"}], "answer": "Hello"},
    {"type": "cancel", "id": 1},
)  # fmt: skip


def _words_typed(data: bytes, folder: Path) -> None:
    """What is written after options: models, texts, overrides."""
    from awq_engine.hub_text import parse_hub_spec
    from awq_engine.models import parse_model
    from awq_engine.overrides import parse_override
    from awq_engine.push import plan_push
    from awq_engine.text_sources import absolute_mix
    from awq_tui.catalog import default_roots
    from awq_tui.draft import Draft, TextSource, review

    text = data.decode("utf-8", "replace")
    for read in (
        parse_override,
        parse_model,
        parse_hub_spec,
        absolute_mix,
        lambda repo: plan_push(folder, repo, private=True),
    ):
        with contextlib.suppress(AwqError):
            read(text)
    for source in TextSource:
        review(Draft(text, text, text_source=source, text=text, samples=text, overrides=text), None, None, None)
    default_roots([text])


def _launches(file: Path) -> None:
    from awq_kernels.tuning import read_measured

    read_measured(file)


# --- the Hub ----------------------------------------------------------------------------------------------------------

COMMIT = "c0ffee" + "0" * 34
HUB_MODEL = {"id": "org/tiny", "sha": COMMIT, "private": False, "gated": "auto", "downloads": 5,
             "tags": ["license:mit"], "config": {"model_type": "llama"},
             "safetensors": {"parameters": {"F16": 10}, "total": 10},
             "siblings": [{"rfilename": "model.safetensors"}, {"rfilename": "config.json"}]}  # fmt: skip
HUB_TREE = [{"type": "file", "path": name, "size": 5, "oid": "a" * 40} for name in ("config.json", "model.safetensors")]


def _hub_client(body: bytes) -> None:
    """From now on every request of this process is answered with `body`."""
    import httpx2
    import huggingface_hub

    parts = _parts(body)

    def answer(request: Any) -> Any:
        if "/org/tiny" not in str(request.url) and not request.url.path.endswith("/api/models"):
            return httpx2.Response(404, request=request)
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Type": "application/json"}
        content = parts["tree" if "/tree/" in request.url.path else "info"] if parts else body
        return httpx2.Response(200, content=content, headers=headers, request=request)

    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))


def _parts(body: bytes) -> dict[str, bytes] | None:
    """What is answered to two kinds of questions, where the input says so."""
    try:
        found = json.loads(body)
        return {part: json.dumps(found[part]).encode() for part in ("info", "tree")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _search(data: bytes, folder: Path) -> None:
    from awq_tui.hub_catalog import search_hub

    _hub_client(data)
    for entry in search_hub("tiny"):
        entry.matches("llama >1b")


def _hub_header(data: bytes, folder: Path) -> None:
    from awq_tui.catalog import Entry, Where
    from awq_tui.details import look_into

    _hub_client(data)
    look_into(Entry(Where.HUB, "org/tiny", "org/tiny"), None)


def _download(data: bytes, folder: Path) -> None:
    from awq_engine.hub_errors import hub_errors
    from awq_engine.models import HubId, _check_files, _files_to_fetch

    _hub_client(data)
    hub = HubId("org/tiny")
    with hub_errors(hub.repo):
        _check_files(hub, _files_to_fetch(hub))


PUSHED = {
    "create": {"url": "https://huggingface.co/org/new", "name": "org/new"},
    "validate": {"errors": [], "warnings": []},
    "preupload": {"files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": False}]},
    "commit": {"commitUrl": "https://huggingface.co/org/new/commit/" + COMMIT, "commitOid": COMMIT},
}  # fmt: skip


def _push(data: bytes, folder: Path) -> None:
    """A commit of one small file, each question of it answered by a part of the input, or by all of it."""
    import httpx2
    import huggingface_hub

    from awq_engine.push import CARD, PushPlan, push

    try:
        found = json.loads(data)
        parts = {part: json.dumps(found[part]).encode() for part in PUSHED}
    except (ValueError, KeyError, TypeError, RecursionError):
        parts = {}

    def answer(request: Any) -> Any:
        body = next((parts[part] for part in parts if part in request.url.path), data)
        return httpx2.Response(200, content=body, headers={"Content-Type": "application/json"}, request=request)

    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    os.environ["HF_TOKEN"] = "hf_of_nobody"
    try:
        push(PushPlan("org/new", folder, {CARD: 5}, (), "# New", True))
    finally:
        del os.environ["HF_TOKEN"]


# --- quantized checkpoints --------------------------------------------------------------------------------------------


def _quantized(layout: Format) -> tuple[Prepare, Seeds]:
    """A model of one linear in a format, with its config."""

    def prepare(folder: Path) -> None:
        from awq_engine.formats.codec import Kept
        from awq_engine.formats.registry import CODECS
        from awq_engine.spec import QuantSpec

        settings = CODECS[layout].settings({"model.layers.0.up_proj": QuantSpec(4, 32, False)}, Kept())
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))

    def seeds(folder: Path) -> list[bytes]:
        import torch
        from safetensors.torch import save

        from awq_engine.formats.registry import CODECS
        from awq_engine.spec import QuantSpec
        from awq_kernels.int_weight import IntWeight

        torch.manual_seed(0)
        q = torch.randint(0, 16, (32, 64), dtype=torch.uint8)
        zeros = torch.randint(1, 16, (32, 2), dtype=torch.uint8)
        weight = IntWeight(q, torch.rand(32, 2).to(torch.float16), zeros, 32)
        parts = CODECS[layout].pack(weight, QuantSpec(4, 32, False), "model.layers.0.up_proj")
        return [save({f"model.layers.0.up_proj.{part}": tensor for part, tensor in parts.items()})]

    return prepare, seeds


def _unpack(file: Path) -> None:
    from awq_engine.formats.stated import read_quantization
    from awq_engine.unpacked import read_dequantized

    checkpoint = read_checkpoint(file.parent)
    quantization = read_quantization(checkpoint)
    assert quantization is not None
    for linear in quantization.linears(checkpoint):
        read_dequantized(checkpoint, quantization, linear)


def _unpack_with(data: bytes, folder: Path) -> None:
    """Good tensors under another config.json."""
    (folder / "config.json").write_bytes(data)
    checkpoint = read_checkpoint(folder)
    if checkpoint.quantization:
        _unpack(folder / "model.safetensors")


def _with_config(layout: Format) -> Parser:
    prepare, seeds = _quantized(layout)

    def both(folder: Path) -> None:
        prepare(folder)
        (folder / "model.safetensors").write_bytes(seeds(folder)[0])

    return Parser(
        f"{layout} settings", lambda folder: [(folder / "config.json").read_bytes()], _unpack_with, prepare=both
    )


def _with_tensors(layout: Format) -> Parser:
    prepare, seeds = _quantized(layout)
    return Parser(f"{layout} tensors", seeds, _saved("model.safetensors", _unpack), mutate_header, prepare)


def _load(file: Path) -> None:
    """The whole model, ready to chat."""
    from awq_engine.runtime import load_model

    load_model(file.parent, device="cpu", backend="reference")


def _prepare_loaded(folder: Path) -> None:
    from tests.engine.rounded_checkpoint import write_awq_folder, write_float_folder

    floats = write_float_folder(folder / "floats", num_hidden_layers=1, hidden_size=32, intermediate_size=64)
    write_awq_folder(floats, folder / "model")


def _prepare_exported(folder: Path) -> None:
    from tests.engine.rounded_checkpoint import write_awq_folder, write_float_folder

    floats = write_float_folder(
        folder / "floats", num_hidden_layers=1, hidden_size=32, intermediate_size=64, vocab_size=2048,
        max_position_embeddings=64,
    )  # fmt: skip
    model = write_awq_folder(floats, folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(str(MODEL)) / name, model / name)


def _exported(name: str) -> Seeds:
    return lambda folder: [(folder / "model" / name).read_bytes()]


def _export(file: Path) -> None:
    """For llama.cpp, for MLX, into another format, and what would go to the Hub."""
    from awq_engine.convert import convert
    from awq_engine.exports.gguf_file import export_gguf
    from awq_engine.exports.mlx_folder import export_mlx
    from awq_engine.push import plan_push

    model, out = file.parent, file.parent.parent
    refusals: list[AwqError] = []
    for job in (
        lambda: export_gguf(model, out / "model.gguf", overwrite=True, progress=_silent),
        lambda: export_mlx(model, out / "mlx", overwrite=True, progress=_silent),
        lambda: convert(model, out / "other", Format.COMPRESSED_TENSORS, overwrite=True, progress=_silent),
        lambda: plan_push(model, "org/new", private=True).to_json(),
    ):
        try:
            job()
        except AwqError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _silent(what: str, done: int, total: int) -> None:
    pass


def _download_state() -> None:
    from awq_engine.downloads import list_downloads

    for download in list_downloads():
        f"{download.spec[:9]} {download.done + download.total} {download.error[:9]}"


PARSERS = (
    Parser("safetensors header", _headers, _saved("model.safetensors", read_header), mutate_header, share=4),
    Parser(
        "safetensors index",
        _of({"metadata": {"total_size": 16}, "weight_map": {"t1": "model-1.safetensors", "t2": "model-2.safetensors"}}),
        _saved("model.safetensors.index.json", lambda file: read_checkpoint(file.parent)),
        prepare=_prepare_shards, share=2,
    ),
    Parser("config.json", _configs, _saved("config.json", _describe), prepare=_copy_demo, share=0.3),
    Parser("architecture", _configs, _saved("config.json", _build), prepare=_copy_demo, share=0.1, guided=False),
    Parser("tokenizer.json", _demo_file("tokenizer.json"), _saved("tokenizer.json", _tokenize), prepare=_copy_demo,
           share=0.1, guided=False),
    Parser("tokenizer_config.json", _demo_file("tokenizer_config.json"), _saved("tokenizer_config.json", _tokenize),
           prepare=_copy_demo, share=0.1, guided=False),
    Parser("chat template", _of(*(text.encode() for text in TEMPLATES)), _render, mutate_words(TEMPLATE_WORDS),
           share=1, guided=False),
    Parser("text", _of(b"Once upon a time.\n\nThe end.", "¡Qué día!".encode()), _saved("a.txt", _documents(False)),
           mutate_bytes),
    Parser("text in lines of JSON", _json_lines, _saved("a.jsonl", _documents(True)), mutate_lines),
    Parser("text in JSON", _json_rows, _saved("a.json", _documents(False)), share=2),
    Parser("text in parquet", _parquets, _saved("a.parquet", _documents(False)), mutate_bytes, share=0.5, guided=False),
    Parser("run.json", _run_files, _saved("run.json", _read_run), share=2),
    Parser("journal", _journals, _saved("journal.jsonl", _read_journal), mutate_lines, _prepare_run, share=0.2),
    Parser("evaluation.json", _of(EVALUATION), _saved("evaluation.json", _measured), prepare=_prepare_finished),
    Parser("evaluating.json", _of({"done": 1, "total": 5}, {"error": "no"}), _saved("evaluating.json", _measured),
           prepare=_prepare_finished),
    Parser("fingerprint.json", _of({"model": "a", "calibration": "b", "engine": "c", "device": "cpu", "threads": 2}),
           _saved("fingerprint.json", _fingerprint)),
    Parser("quantization_report.json", _reports, _saved("quantization_report.json", _read_report), share=0.7),
    Parser("settings.json", _of(SETTINGS), _in_home("settings.json", _settings)),
    Parser("config.toml", _of(CONFIG), _in_home("config.toml", _preferences), mutate_words(TOML_WORDS)),
    Parser("recipes.json", _of(RECIPES), _in_home("recipes.json", _recipes)),
    Parser("conversations", _of(CHAT), _in_home("chats/x.json", _chats)),
    Parser("replies of the chat worker", _of(*REPLIES), _reply),
    Parser("requests to the chat worker", _of(*REQUESTS), _request),
    Parser("measured launches", _of({"4 bits": {"block": 1, "outputs": 16, "slices": 2, "warps": 2, "stages": 2}}),
           _saved("launches.json", _launches)),
    Parser("words typed", _of(b"org/name@main", b"*.down_proj=bits:8,group:64", b"hub:o/d@x:c:s:t", b"./x+builtin"),
           _words_typed, mutate_bytes),
    Parser("search of the Hub", _of([HUB_MODEL, HUB_MODEL]), _search, share=0.3),
    Parser("headers on the Hub", lambda folder: [_headers(folder)[1], *_of(HUB_MODEL)(folder)], _hub_header,
           mutate_header, share=0.1),
    Parser("listing on the Hub", _of({"info": HUB_MODEL, "tree": HUB_TREE}), _download, share=0.1),
    Parser("replies to a push", _of(PUSHED), _push, share=0.2),
    Parser("state of a download", _of({"spec": "org/tiny", "done": 5, "total": 10, "finished": False, "error": ""}),
           _in_home("downloads/org--tiny/state.json", _download_state)),
    Parser("exported config.json", _exported("config.json"), _saved("model/config.json", _export),
           prepare=_prepare_exported, share=0.05, guided=False),
    Parser("exported tokenizer.json", _exported("tokenizer.json"), _saved("model/tokenizer.json", _export),
           prepare=_prepare_exported, share=0.03, guided=False),
    Parser("exported weights", _exported("model.safetensors"), _saved("model/model.safetensors", _export),
           mutate_header, _prepare_exported, share=0.1, guided=False),
    *(_with_tensors(layout) for layout in Format),
    *(_with_config(layout) for layout in Format),
    Parser("whole quantized model", lambda folder: [(folder / "model" / "model.safetensors").read_bytes()],
           _saved("model/model.safetensors", _load), mutate_header, _prepare_loaded, share=0.1, guided=False),
    Parser("whole model's config", lambda folder: [(folder / "model" / "config.json").read_bytes()],
           _saved("model/config.json", _load), prepare=_prepare_loaded, share=0.1, guided=False),
)  # fmt: skip
"""Every parser there is."""
