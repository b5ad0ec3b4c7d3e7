"""A model spec means a folder, a run's output or a Hub repository, and downloads fetch only what is safe."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_engine.config import RunConfig
from awq_engine.disk import check_disk
from awq_engine.errors import BadInputError, ResourceError
from awq_engine.events import RunFinished
from awq_engine.journal import Journal
from awq_engine.models import HubId, describe_model, parse_model, resolve_model
from awq_engine.runs import create_run
from tests.engine.fake_hub import COMMIT, FakeHub, fake_hub, run_python
from tests.engine.safetensors_files import model_folder

WEIGHTS = bytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "consolidated.00.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"raise SystemExit",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}
RESOLVE = """
import json
from awq_engine.errors import AwqError
from awq_engine.models import resolve_model
seen = []
try:
    model = resolve_model("org/tiny@main", lambda *progress: seen.append(progress))
    print(json.dumps([str(model.path), model.name, model.revision, seen]))
except AwqError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(dict(FILES)) as hub:
        yield hub


def resolve(hub: FakeHub, home: Path, **environment: str) -> list:
    result = run_python(RESOLVE, hub.url, home, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_download_fetches_weights_and_tokenizer_but_no_code(hub: FakeHub, tmp_path: Path) -> None:
    path, name, revision, _ = resolve(hub, tmp_path)
    assert (name, revision) == ("tiny", COMMIT)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert {file.name for file in Path(path).iterdir()} == expected
    assert hub.downloaded() == expected
    assert (Path(path) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_progress_ends_at_the_exact_total(hub: FakeHub, tmp_path: Path, disabled: str) -> None:
    """The engine runs with the library's own bars switched off; its counting must not depend on that."""
    *_, seen = resolve(hub, tmp_path, HF_HUB_DISABLE_PROGRESS_BARS=disabled)
    total = sum(len(FILES[name]) for name in hub.downloaded())
    assert seen[-1] == [total, total, "org/tiny"]
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)


def test_second_time_comes_from_the_cache_even_offline(hub: FakeHub, tmp_path: Path) -> None:
    first, *_ = resolve(hub, tmp_path)
    hub.requests.clear()
    again, _, revision, seen = resolve(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (again, revision, seen, hub.requests) == (first, COMMIT, [], [])


@pytest.mark.parametrize(
    ("absent", "part"), [("model.safetensors", "no safetensors weights"), ("config.json", "has no config.json")]
)
def test_repository_that_is_no_model_is_refused_before_download(
    hub: FakeHub, tmp_path: Path, absent: str, part: str
) -> None:
    del hub.files[absent]
    kind, sentence = resolve(hub, tmp_path)
    assert kind == "BadInputError"
    assert part in sentence
    assert "GET /org/tiny/resolve" not in " ".join(hub.requests)


def test_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    for spec in (str(folder), "org/model", "./org/model"):
        assert resolve_model(spec).path == folder
    assert resolve_model("org/model").name == "model"


def test_path_that_does_not_exist_is_still_a_path() -> None:
    assert parse_model("./not/there") == (Path.cwd() / "not/there").resolve()


def test_hub_id_with_and_without_revision() -> None:
    assert parse_model("org/name") == HubId("org/name")
    assert parse_model("org/na-me_1.5@refs/pr/3") == HubId("org/na-me_1.5", "refs/pr/3")


@pytest.mark.parametrize("spec", ["org/name/more", "org/na me", "org/name@", "http://x/y", "org/näme"])
def test_malformed_hub_id_is_bad_input(spec: str) -> None:
    with pytest.raises(BadInputError, match="neither a folder nor a Hub id"):
        parse_model(spec)


@pytest.mark.parametrize("spec", ["", "nothing", "gpt2"])
def test_word_that_is_no_run_is_bad_input(spec: str) -> None:
    with pytest.raises(BadInputError, match="no folder here and no run"):
        parse_model(spec)


def test_run_id_means_its_output(tmp_path: Path) -> None:
    output = model_folder(tmp_path / "out")
    run = create_run(RunConfig("m", str(output)))
    with pytest.raises(BadInputError, match=f"Run {run.id} is interrupted, so it has no model yet"):
        parse_model(run.id)
    with Journal(run.journal_path) as journal:
        journal(RunFinished({}))
    assert parse_model(run.id) == output
    assert parse_model("latest") == output
    shutil.rmtree(output)
    with pytest.raises(BadInputError, match="is gone"):
        parse_model(run.id)


def test_name_of_any_spec() -> None:
    assert describe_model("org/name@v1") == "name"
    assert describe_model("/a/b/") == "b"
    assert describe_model("unknown-run") == "unknown-run"


def test_disk_that_is_too_small_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1_000_000))
    check_disk(tmp_path / "not" / "yet", 1_000_000, "this")
    with pytest.raises(
        ResourceError, match=r"Not enough disk space for this: it needs 2\.0 MB .* where 1\.0 MB are free"
    ):
        check_disk(tmp_path / "not" / "yet", 2_000_000, "this")


def test_bytes_that_changed_on_their_way_are_refused(hub: FakeHub, home: Path) -> None:
    """Of the right length, so that only their hash tells; the next attempt fetches them again."""

    def hinder(handler: Any, path: str, body: bytes) -> bool:
        if handler.command != "GET" or not path.endswith("model.safetensors"):
            return False
        hub.hinder = lambda handler, path, body: False
        handler._send_file("model.safetensors", body[:-1] + b"?")
        return True

    hub.hinder = hinder
    kind, message = resolve(hub, home)
    assert kind == "NetworkError"
    assert "model.safetensors of org/tiny arrived damaged" in message
    path, *_ = resolve(hub, home)
    assert (Path(path) / "model.safetensors").read_bytes() == WEIGHTS
