"""Files made to harm: nothing in them runs, nothing outside is read or written, nothing reaches the terminal raw."""

from __future__ import annotations

import argparse
import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from awq_engine import bounded as limits
from awq_engine.bounded import bounded
from awq_engine.checkpoint import read_checkpoint
from awq_engine.conversations import Renderer
from awq_engine.crash import write_crash_report
from awq_engine.demo import MODEL
from awq_engine.documents import Notes
from awq_engine.errors import BadInputError, UsageError
from awq_engine.hub_text import parse_hub_spec
from awq_engine.models import parse_model
from awq_engine.prompts import encode_prompt
from awq_engine.rows import Conversation
from awq_engine.runtime import load_model, load_tokenizer
from awq_engine.sanitize import redacted

ROOT = Path(__file__).parents[2]
SOURCES = [file for part in ("awq_tui", "engine", "kernels") for file in sorted((ROOT / part).rglob("*.py"))]
TOKEN = "hf_" + "aB3" * 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(str(MODEL), tmp_path / "model")
    return tmp_path / "model"


OWN_CODE = ("own", "is_trusted(path)", "runs_own_code(config)")
"""Expressions that hold only for code that was allowed, as `test_own_code` shows."""

# --- code -------------------------------------------------------------------------------------------------------------


def test_nothing_in_our_code_can_unpickle() -> None:
    """No module that runs what a file says is imported, and no function that does is called, by name or attribute."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "runpy", "imp"}
    calls = {"eval", "exec", "compile", "__import__", "load_pickle", "read_pickle"}
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", "") or "")}
                found += [f"{file.name}: {name}" for name in names & modules]
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                if function in calls or function in ("torch.load", "torch.hub.load", "np.load", "numpy.load"):
                    found.append(f"{file.name}:{node.lineno} {function}")
                for keyword in node.keywords:
                    allowed = ("False", *OWN_CODE) if keyword.arg == "trust_remote_code" else ("False",)
                    if (
                        keyword.arg in ("allow_pickle", "trust_remote_code")
                        and ast.unparse(keyword.value) not in allowed
                    ):
                        found.append(f"{file.name}:{node.lineno} {keyword.arg}")
    assert found == []


class Payload:
    """Unpickling one makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_pickles_and_code_beside_the_weights_are_left_alone(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    code = f"open({str(mark)!r}, 'w')\nclass X: pass\n"
    for name in ("modeling_llama.py", "tokenization_x.py", "configuration_x.py", "generation.py", "custom_generate.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_llama.X"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokens, "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}})
    )
    load_model(folder, device="cpu")
    try:
        load_tokenizer(folder)
    except BadInputError as error:  # refusing it is as good as reading it without its code
        assert "tokenizer" in str(error)  # noqa: PT017
    assert not mark.exists()


# --- chat templates ---------------------------------------------------------------------------------------------------

ENDLESS = {
    "ranges of ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 7 ** (7 ** (7 ** 7)) }}",
    "a growing number": "{% set ns = namespace(x=3) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
}
GREEDY = {
    "a repeated text": "{{ 'a' * 10 ** 10 }}",
    "a doubled text": "{% set n = namespace(x='aaaa') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a wide format": "{{ '%9999999999d' | format(1) }}",
    "a centred text": "{{ 'a' | center(10 ** 10) }}",
    "a repeated list": "{{ [messages] * 10 ** 10 }}",
}
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ messages.__class__ }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__ }}", "{% set x = messages.append(1) %}", "{{ lipsum.__globals__ }}",
    "{{ ''|attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}", "{{ messages|map(attribute='__class__')|list }}",
)  # fmt: skip


def render(template: str) -> None:
    tokenizer: Any = load_tokenizer(Path(str(MODEL)))
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    loaded: Any = argparse.Namespace(tokenizer=tokenizer, path="/a/model")
    encode_prompt(loaded, messages)


@pytest.mark.parametrize("template", [*ENDLESS, *GREEDY])
def test_a_template_without_an_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = limits.bounded.__wrapped__.__defaults__
    monkeypatch.setattr(limits.bounded.__wrapped__, "__defaults__", (1.0, defaults[1]))
    started = time.perf_counter()
    with pytest.raises(BadInputError, match=r"The chat template of /a/model (takes more than|wants more than)"):
        render({**ENDLESS, **GREEDY}[template])
    assert time.perf_counter() - started < 10


def test_calibration_stops_at_the_first_conversation_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.bounded.__wrapped__, "__defaults__", (0.5, 1 << 30))
    tokenizer: Any = load_tokenizer(Path(str(MODEL)))
    tokenizer.chat_template = ENDLESS["ranges of ranges"]
    with pytest.raises(BadInputError, match="takes more than"):
        Renderer(tokenizer, Notes()).render(Conversation([{"role": "user", "content": "Hi"}]), "row 1")


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_out_of_its_sandbox(template: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(BadInputError) as caught:
        render(template.replace("MARK", str(mark)) + "{{ raise_exception('the end') }}")
    assert "root:" not in str(caught.value)
    assert not re.search(r"<(class|built-in|function|module)", str(caught.value))
    assert not mark.exists()


def test_limits_are_taken_off_again() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with bounded("it"):
        assert resource.getrlimit(resource.RLIMIT_AS) != before[0]
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_other_threads_have_the_limit_of_memory() -> None:
    problems: list[str] = []

    def work() -> None:
        try:
            with bounded("it", memory=1 << 28):
                bytearray(1 << 32)
        except BadInputError as error:
            problems.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == ["it wants more than 256 MiB of memory; use another."]


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "LICENSE", "tokenizer.json", "notes"])
def test_links_out_of_a_model_folder_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(BadInputError, match=rf"{re.escape(name)} is a link to .*secret, outside"):
        read_checkpoint(folder)


def test_links_inside_a_folder_and_a_linked_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    (tmp_path / "alias").symlink_to(folder)
    assert read_checkpoint(tmp_path / "alias").parameters == read_checkpoint(Path(str(MODEL))).parameters


def test_links_of_the_hubs_cache_are_followed_and_others_in_it_are_not(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    assert read_checkpoint(snapshot).tensors
    (snapshot / "LICENSE").unlink(missing_ok=True)
    (snapshot / "LICENSE").symlink_to("../../../secret")
    with pytest.raises(BadInputError, match="outside"):
        read_checkpoint(snapshot)


@pytest.mark.parametrize("spec", ["org/..", "org/na..me", "a/../b", "org/name@../../x", "org/.git", "org/name@a/../b"])
def test_repository_ids_that_climb(spec: str) -> None:
    with pytest.raises(BadInputError, match="neither a folder nor a Hub id"):
        parse_model(spec)


@pytest.mark.parametrize("spec", ["hub:org/..", "hub:org/x@../y", "hub:a/..:b"])
def test_data_set_ids_that_climb(spec: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_hub_spec(spec)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [TOKEN, f"https://user:{TOKEN}@huggingface.co/x", f"https://me:s3cretpass@proxy:80 {TOKEN}", f"a?token={TOKEN}&b",
     f"Authorization: Bearer {TOKEN}", f"headers={{'authorization': 'Bearer {TOKEN}'}}", "?api_key=s3cretpass"],
)  # fmt: skip
def test_secrets_are_struck_out(text: str) -> None:
    shown = redacted(text)
    assert TOKEN not in shown
    assert "s3cretpass" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "text", ["/data/hf_internal_testing/tiny", "hf_home", "https://huggingface.co/org/name", "a@b"]
)
def test_names_that_are_no_secrets_stay(text: str) -> None:
    assert redacted(text) == text


def test_a_token_of_another_shape_is_known_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "enterprise-0123456789")
    assert redacted("sent enterprise-0123456789 to") == "sent *** to"


def test_crash_reports_hold_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["awq-tui", "push", f"https://me:{TOKEN}@host/x"])
    try:
        raise RuntimeError(f"sent {TOKEN}")
    except RuntimeError as error:
        report = write_crash_report(error)
    assert TOKEN not in report.read_text()
    assert report.stat().st_mode & 0o077 == 0
    assert report.parent.stat().st_mode & 0o077 == 0


# --- the network ------------------------------------------------------------------------------------------------------

WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        target = arguments[-1] if event == "socket.connect" else arguments
        if not isinstance(target, (str, bytes)):
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{event} {target}\\n")
            raise OSError("no network here")
sys.addaudithook(watch)
"""
JOBS = """
import sys
from awq_engine.cli import main
model, text, out = sys.argv[1:]
sizes = ["--group-size", "32", "--samples", "4", "--seq-len", "64", "--preset", "fast"]
codes = [main(["quantize", model, "-o", out, *sizes, "--calibration", text, "--device", "cpu"])]
codes += [main(["eval", out, "--text", text, "--seq-len", "64", "--device", "cpu"])]
codes += [main(["inspect", out]), main(["runs"])]
codes += [main(["chat", out, "--prompt", "Hi", "--max-tokens", "2", "--device", "cpu"]), main(["doctor"])]
print("CODES", [int(code) for code in codes])
"""


def test_local_work_asks_no_network(tmp_path: Path) -> None:
    """Quantize, evaluate, inspect, chat and doctor on local files: no address is looked up, no connection made."""
    from tests.engine.tiny_model import write_tiny_model

    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the rain. " * 200)
    model = write_tiny_model(tmp_path / "model")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "WATCHED": str(tmp_path / "seen"), "AWQ_TUI_HOME": str(tmp_path / "home"),
           "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", JOBS, str(model), str(tmp_path / "text.txt"), str(tmp_path / "out")],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "CODES [0, 0, 0, 0, 0, 0]" in done.stdout, done.stdout[-1500:] + done.stderr[-1500:]
    assert not (tmp_path / "seen").exists(), (tmp_path / "seen").read_text()


def test_runs_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from awq_engine.config import RunConfig
    from awq_engine.runs import create_run

    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    before = os.umask(0)
    try:
        run = create_run(RunConfig("m", "/out"))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (run.path, run.path.parent, run.blocks_dir)] == [0o700] * 3
