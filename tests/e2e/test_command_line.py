"""The real `awq-tui` command as a script would use it: one life of a model, and all that can be wrong with input.

Where a refusal comes before any engine starts, `awq_engine.cli.main`, which is all that the command calls, is called
in this process: the same code without another interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_engine import cli
from awq_engine.events import PlanReady
from awq_engine.runs import Run, RunStatus
from tests.e2e.conftest import COMMAND, Workplace
from tests.engine.fake_hub import fake_hub

Capture = pytest.CaptureFixture[str]
Result = subprocess.CompletedProcess[str]

QUICK = ("--group-size", "32", "--samples", "8", "--seq-len", "32")
PROMISED = {
    "run_id", "output", "bits", "group_size", "format", "bytes_before", "bytes_after", "bits_per_weight", "seconds",
    "peak_host_bytes", "peak_device_bytes", "blocks", "folds", "fallbacks",
}  # fmt: skip


def awq_tui(workplace: Workplace, *arguments: str, **environment: str) -> Result:
    """Run the command to its end, without a terminal."""
    env = {**os.environ, **workplace.env, **environment}
    return subprocess.run(
        [COMMAND, *arguments], cwd=workplace.here, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def succeed(workplace: Workplace, *arguments: str) -> str:
    """What a command that has to work prints."""
    result = awq_tui(workplace, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def only_json(text: str) -> dict[str, Any]:
    """The one object that `text` consists of."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def wait_for_status(run: Run, status: RunStatus, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while run.status() is not status:
        assert time.monotonic() < deadline, f"{run.id} is {run.status()}, not {status}\n{run.log_path.read_text()}"
        time.sleep(0.05)


# One life of a model


@pytest.fixture(scope="module")
def finished(workplace: Workplace) -> dict[str, Any]:
    """The result of `quantize --json`, the first run of all."""
    return only_json(succeed(workplace, "quantize", "tiny", *QUICK, "--calibration", "stories.txt", "--json"))


def test_quantize_reports_what_it_did(workplace: Workplace, finished: dict[str, Any]) -> None:
    assert finished.keys() >= PROMISED
    output = workplace.here / "tiny-AWQ-W4-G32"
    assert finished["output"] == str(output)
    assert (finished["bits"], finished["group_size"], finished["format"], finished["blocks"]) == (4, 32, "awq", 2)
    assert finished["bytes_after"] < finished["bytes_before"]
    assert finished["seconds"] > 0
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "quantization_report.json", "README.md"}


def test_every_file_that_is_kept_is_documented(workplace: Workplace, finished: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    kept = [file for file in Path(workplace.env["AWQ_TUI_HOME"]).rglob("*") if file.is_file()]
    kept += [file for file in Path(finished["output"]).iterdir() if "quantization" in file.name]
    assert len(kept) > 5
    for file in kept:
        assert f"`{file.name}`" in page or f"{file.parent.name}/{file.name}`" in page, file


def test_dry_run_foretells_the_run_and_writes_nothing(workplace: Workplace, finished: dict[str, Any]) -> None:
    before = sorted(workplace.folder.rglob("*"))
    plan = only_json(succeed(workplace, "quantize", "tiny", *QUICK, "-o", "elsewhere", "--dry-run", "--json"))
    assert sorted(workplace.folder.rglob("*")) == before
    assert len(plan["linears"]) == 14
    for figure in ("bytes_before", "bytes_after", "bits_per_weight"):
        assert plan[figure] == finished[figure]


def test_runs_lists_it_and_watch_replays_it(workplace: Workplace, finished: dict[str, Any]) -> None:
    listed = only_json(succeed(workplace, "runs", "--json"))["runs"]
    assert [(run["status"], run["fraction"]) for run in listed if run["run_id"] == finished["run_id"]] == [("done", 1)]
    assert finished["run_id"] in succeed(workplace, "runs")
    replayed = awq_tui(workplace, "watch", finished["run_id"])
    assert replayed.returncode == 0
    assert "block 2/2" in replayed.stderr
    assert finished["output"] in replayed.stdout


def test_inspect_reads_the_run_and_the_folder_alike(workplace: Workplace, finished: dict[str, Any]) -> None:
    of_run = only_json(succeed(workplace, "inspect", finished["run_id"], "--json"))["layers"]
    of_folder = only_json(succeed(workplace, "inspect", "tiny-AWQ-W4-G32", "--json"))["layers"]
    assert of_run == of_folder
    assert len(of_run) == 14
    assert all(layer["loss_final"] < layer["loss_rounding"] for layer in of_run)
    by_type = succeed(workplace, "inspect", finished["run_id"], "--by-type").splitlines()
    types = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [line.split()[0] for line in by_type[1:]] == types


def test_eval_measures_the_distance_to_the_original(workplace: Workplace, finished: dict[str, Any]) -> None:
    few = ("--seq-len", "64", "--max-tokens", "256", "--json")
    found = only_json(succeed(workplace, "eval", finished["run_id"], "--against", "tiny", *few))
    assert found.keys() >= {"nll", "perplexity", "tokens", "kl", "top1_agreement", "nll_original"}
    assert found["tokens"] == 4 * 63
    assert 0 < found["kl"] < 1
    assert 0 < found["top1_agreement"] <= 1


def test_chat_prints_the_reply_alone(workplace: Workplace, finished: dict[str, Any]) -> None:
    result = awq_tui(workplace, "chat", finished["run_id"], "--prompt", "Hello", "--max-tokens", "8", "--seed", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "[8 tokens" in result.stderr


def test_detached_run_is_cancelled_resumed_and_removed(workplace: Workplace, finished: dict[str, Any]) -> None:
    started = only_json(succeed(workplace, "quantize", "tiny", *QUICK, "-o", "second", "--detach", "--json"))
    assert started["run_id"] != finished["run_id"]
    run = Run(workplace.home / "runs" / started["run_id"])
    assert run.status() is RunStatus.RUNNING
    refused = awq_tui(workplace, "rm", run.id)
    assert (refused.returncode, "still running" in refused.stderr) == (2, True)
    succeed(workplace, "cancel", run.id)
    wait_for_status(run, RunStatus.CANCELLED)
    assert not (workplace.here / "second").exists()
    watched = awq_tui(workplace, "watch", run.id)
    assert watched.returncode == 130
    assert f"awq-tui resume {run.id}" in watched.stderr
    resumed = only_json(succeed(workplace, "resume", run.id, "--json"))
    assert resumed["run_id"] == run.id
    assert files_of(workplace.here / "second").keys() == files_of(Path(finished["output"])).keys()
    succeed(workplace, "rm", run.id)
    assert not run.path.exists()
    assert (workplace.here / "second" / "model.safetensors").is_file()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_command_cancels_its_run(workplace: Workplace) -> None:
    env = {**os.environ, **workplace.env}
    command = [COMMAND, "quantize", "tiny", *QUICK, "-o", "third", "--json"]
    with subprocess.Popen(
        command, cwd=workplace.here, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "engine" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert only_json(out)["exit_code"] == 130
    assert "awq-tui resume" in err
    assert not (workplace.here / "third").exists()


# Input that cannot be used: a sentence, an exit code, and nothing left behind


@pytest.fixture
def here(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home of their own for one refusal."""
    for name, value in workplace.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(workplace.here / "tiny", "tiny")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def refuses(capsys: Capture, here: Path, arguments: list[str], code: int, *parts: str) -> None:
    """The command says all `parts` in one line, with no traceback, and leaves no file and no run."""
    before = contents(here)
    assert cli.main(["quantize", *arguments]) == code
    captured = capsys.readouterr()
    check_sentence(captured.err, *parts)
    assert captured.out == ""
    assert contents(here) == before
    assert not list((here.parent / "home").glob("runs/*"))


def check_sentence(stderr: str, *parts: str) -> None:
    *progress, last = stderr.strip().splitlines()
    assert last.startswith("awq-tui: ")
    assert last.endswith(".")
    assert not [line for line in progress if "Traceback" in line or line.startswith(" ")]
    for part in parts:
        assert part in last


def shard(folder: Path, *names: str) -> None:
    """Give the model an index that says its tensors are in a shard called a, and `names` too."""
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    with (folder / "a.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    weight_map = dict.fromkeys([name for name in header if name != "__metadata__"], "a.safetensors")
    weight_map |= dict.fromkeys(names, "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def lose_shard(tiny: Path) -> None:
    shard(tiny)
    (tiny / "a.safetensors").unlink()


def truncate_shard(tiny: Path) -> None:
    os.truncate(tiny / "model.safetensors", 500_000)


def empty_shard(tiny: Path) -> None:
    os.truncate(tiny / "model.safetensors", 0)


def name_absent_tensors(tiny: Path) -> None:
    shard(tiny, "model.layers.7.mlp.up_proj.weight", "model.layers.8.mlp.up_proj.weight")


def leave_only_pickles(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")


def lose_config(tiny: Path) -> None:
    (tiny / "config.json").unlink()


def break_config(tiny: Path) -> None:
    (tiny / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lose_config, ["tiny is not a model folder", "config.json"]),
        (break_config, ["config.json is not valid JSON"]),
        (lose_shard, ["lacks the shard a.safetensors"]),
        (truncate_shard, ["model.safetensors is truncated", "bytes past its end"]),
        (empty_shard, ["model.safetensors is truncated", "(0 bytes)"]),
        (name_absent_tensors, ["names 2 tensors that no shard holds", "model.layers.7.mlp.up_proj.weight"]),
        (leave_only_pickles, ["only pickled weights (pytorch_model.bin)", "convert them to safetensors"]),
    ],
)
def test_damaged_model_is_refused(
    capsys: Capture, here: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(here / "tiny")
    refuses(capsys, here, ["tiny"], 2, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["./nothing"], ["nothing is not a folder"]),
        (["nothing"], ["'nothing'"]),
        (["tiny", "--bits", "5"], ["bit width of 5 is not supported; choose one of 2, 3, 4, 8"]),
        (["tiny", "--group-size", "48"], ["group size of 48 does not divide", "32, 64, -1"]),
        (["tiny", "--group-size", "128"], ["128 does not divide the 64 inputs of model.layers.0", ": 32, 64, -1"]),
        (["tiny", "--group-size", "32", "--calibration", "absent.txt"], ["no calibration text absent.txt"]),
        (["tiny", "--group-size", "32", "-o", "tiny"], ["would replace the model itself"]),
        (["tiny", "--group-size", "32", "-o", "tiny/config.json"], ["exists already", "--overwrite"]),
    ],
)
def test_impossible_request_is_refused(capsys: Capture, here: Path, arguments: list[str], parts: list[str]) -> None:
    refuses(capsys, here, arguments, 2, *parts)


def test_existing_output_is_refused_and_kept(capsys: Capture, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work")
    refuses(capsys, here, ["tiny", *QUICK, "-o", "mine"], 2, "mine exists already", "--overwrite")
    refuses(capsys, here, ["tiny", *QUICK, "-o", "mine", "--overwrite"], 2, "not a model folder")


def test_names_with_escapes_and_markup_are_shown_harmlessly(capsys: Capture, here: Path) -> None:
    evil = "evil\x1b]0;owned\x07\u202e[bold red]"
    (here / "tiny").rename(here / evil)
    assert cli.main(["quantize", f"./{evil}", *QUICK, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "evil␛]0;owned␇\ufffd[bold red]" in shown
    (here / evil / "config.json").write_text(json.dumps({"model_type": "llama\x1b[2J\x9b2J"}))
    assert cli.main(["quantize", f"./{evil}", *QUICK, "--calibration", f"{evil}.txt"]) == 2
    shown += capsys.readouterr().err
    (here / evil / "config.json").unlink()
    assert cli.main(["quantize", f"./{evil}"]) == 2
    shown += capsys.readouterr().err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)


# Refusals that only the engine, which reads texts and asks the Hub, can give


def refused_by_engine(workplace: Workplace, *arguments: str, **environment: str) -> Result:
    """A failed run: its sentence on stderr, nothing in the folder it was started in."""
    before = contents(workplace.here)
    result = awq_tui(workplace, "quantize", *arguments, **environment)
    check_sentence(result.stderr)
    assert result.stdout == ""
    assert contents(workplace.here) == before
    return result


def test_too_little_text_says_how_much_is_needed_and_found(workplace: Workplace) -> None:
    (workplace.here / "little.txt").write_text("The dog ran over the bridge. " * 20)
    result = refused_by_engine(workplace, "tiny", *QUICK, "--calibration", "little.txt", "-o", "none")
    assert result.returncode == 2
    check_sentence(result.stderr, "little.txt has 181 tokens", "need 256", "a longer text")


def test_calibration_file_that_is_no_text(workplace: Workplace) -> None:
    (workplace.here / "noise.txt").write_bytes(b"plain and then \xff\xfe\x00")
    result = refused_by_engine(workplace, "tiny", *QUICK, "--calibration", "noise.txt", "-o", "none")
    assert result.returncode == 2
    check_sentence(result.stderr, "noise.txt is not UTF-8 text")


def test_hub_id_while_offline(workplace: Workplace) -> None:
    result = refused_by_engine(workplace, "org/model", "-o", "none")
    assert result.returncode == 4
    check_sentence(result.stderr, "Offline", "org/model", "cache")


@pytest.mark.parametrize(
    ("model", "parts"), [("unknown/model", ["unknown/model"]), ("gated/model", ["gated/model", "licence"])]
)
def test_hub_refuses(workplace: Workplace, model: str, parts: list[str]) -> None:
    with fake_hub({}) as hub:
        result = refused_by_engine(
            workplace, model, "-o", "none", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1"
        )
    assert result.returncode == 4
    check_sentence(result.stderr, *parts)


# A disk that is full, or becomes full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts disks of the sizes asked for."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_output_that_does_not_fit_is_refused(capsys: Capture, here: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("300k")
    refuses(capsys, here, ["tiny", *QUICK, "-o", str(disk / "out")], 3, "Not enough disk space", "568 kB", "are free")
    assert list(disk.iterdir()) == []


def test_disk_that_fills_up_during_the_run(workplace: Workplace, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    run = Run(workplace.home / "runs" / succeed(
        workplace, "quantize", "tiny", *QUICK, "-o", str(disk / "out"), "--detach"
    ).strip())  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(isinstance(record.event, PlanReady) for record in run.records()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (disk / "film").write_bytes(bytes(900_000))
    watched = awq_tui(workplace, "watch", run.id)
    assert watched.returncode == 3, watched.stderr
    check_sentence(watched.stderr, "disk")
    assert [path.name for path in disk.iterdir()] == ["film"]
    (disk / "film").unlink()
    assert only_json(succeed(workplace, "resume", run.id, "--json"))["output"] == str(disk / "out")
