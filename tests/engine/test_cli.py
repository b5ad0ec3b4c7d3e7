"""The command line without torch: options, errors, exit codes, and runs whose engine is a stand-in."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_engine import cli, crash
from awq_engine.commands import runs as run_commands
from awq_engine.config import RunConfig
from awq_engine.journal import Journal
from awq_engine.report import REPORT_NAME, build_report
from awq_engine.runs import Run, RunStatus, create_run, find_run, list_runs
from awq_engine.state import replay
from tests.engine import fake_engine
from tests.engine.journals import LINEARS, RESULT, block, planned, quantized, records, scaled, started, whole_run
from tests.engine.safetensors_files import llama_shapes, model_folder

PROMISED = {
    "run_id", "output", "bits", "group_size", "format", "bytes_before", "bytes_after", "bits_per_weight", "seconds",
    "peak_host_bytes", "peak_device_bytes", "blocks", "folds", "fallbacks",
}  # fmt: skip

COMMANDS = ["quantize", "runs", "watch", "cancel", "resume", "rm", "inspect", "eval", "chat", "demo", "doctor"]

DETACHED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""`--detach` leaves a process behind on purpose, which Python's `Popen` remarks on."""

Capture = pytest.CaptureFixture[str]
Engine = Callable[[str], None]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "tiny")


def ended_run(*events: object) -> Run:
    run = create_run(RunConfig("/models/tiny", "/out"))
    with Journal(run.journal_path) as journal:
        for event in events or whole_run():
            journal(event)  # type: ignore[arg-type]
    return run


def fails(capsys: Capture, arguments: list[str], code: int, part: str) -> None:
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


# Options and errors


def test_help_lists_every_command(capsys: Capture) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"usage: awq-tui {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["bogus"], ["quantize"], ["quantize", "m", "--bits", "four"], ["runs", "--no"], ["rm"]]
)
def test_wrong_usage_exits_with_two(capsys: Capture, arguments: list[str]) -> None:
    assert cli.main(arguments) == 2
    assert "usage: awq-tui" in capsys.readouterr().err


def test_starting_does_not_import_torch() -> None:
    code = (
        "import sys; from awq_engine import cli; cli.main(['runs']); cli.main(['quantize', '/nowhere']);"
        "print([name for name in ('torch', 'transformers', 'textual', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--bits", "5"], "A bit width of 5 is not supported; choose one of 2, 3, 4, 8"),
        (["--group-size", "100"], "fits every layer: 32, 64, 128, -1"),
        (["--bits", "3"], "use --bits 4, or --format compressed-tensors"),
        (["--samples", "0"], "samples must be at least 1"),
        (["--calibration", "absent.txt"], "There is no calibration text absent.txt"),
        (["-o", "tiny"], "would replace the model itself"),
        (["-o", "."], "would replace the model itself"),
    ],
)
@pytest.mark.usefixtures("model")
def test_impossible_request_starts_nothing(capsys: Capture, options: list[str], part: str) -> None:
    fails(capsys, ["quantize", "tiny", *options], 2, part)
    assert list_runs() == []


def test_group_size_that_does_not_divide_starts_nothing(capsys: Capture, tmp_path: Path) -> None:
    model_folder(tmp_path / "odd", llama_shapes(mlp=192))
    fails(capsys, ["quantize", "odd"], 2, "does not divide the 192 inputs of model.layers.0.mlp.down_proj.weight")
    assert list_runs() == []


def test_existing_output_is_refused_before_anything_starts(capsys: Capture, model: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-AWQ-W4-G128").mkdir()
    fails(capsys, ["quantize", str(model)], 2, "exists already")
    assert list_runs() == []


def test_cluster_without_ray_is_refused_before_anything_starts(
    capsys: Capture, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails(capsys, ["quantize", str(model), "--on", "ray://box:10001"], 2, "pip install 'awq-tui[ray]'")
    assert list_runs() == []


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("./absent", "is not a folder"),
        ("nothing", "no folder here and no run"),
        ("a/b/c", "neither a folder nor a Hub id"),
    ],
)
def test_model_that_is_none_is_bad_input(capsys: Capture, spec: str, part: str) -> None:
    fails(capsys, ["quantize", spec], 2, part)


def test_failure_with_json_is_one_object_too(capsys: Capture) -> None:
    assert cli.main(["quantize", "./absent", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 2
    assert "is not a folder" in json.loads(captured.out)["error"]
    assert "is not a folder" in captured.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["quantize", "--json"], "required: MODEL"),
        (["quantize", "m", "--bits", "four", "--json"], "invalid int value: 'four'"),
        (["runs", "--json", "--no"], "unrecognized arguments: --no"),
        (["--json", "bogus"], "invalid choice: 'bogus'"),
    ],
)
def test_wrong_usage_with_json_is_one_object_too(capsys: Capture, arguments: list[str], part: str) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert (set(data), data["exit_code"]) == ({"error", "exit_code"}, 2)
    assert part in data["error"]
    assert part in captured.err


def test_bug_writes_a_report_without_secrets(capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash_now(_: object) -> int:
        raise RuntimeError("token hf_SecretSecret123 leaked")

    monkeypatch.setattr(run_commands, "show_runs", crash_now)
    monkeypatch.setenv("SOME_VARIABLE", "private-value")
    fails(capsys, ["runs"], 1, "A bug in awq-tui stopped this command (RuntimeError); the report is in")
    (report,) = (home / "crashes").iterdir()
    text = report.read_text()
    assert "crash_now" in text
    assert "hf_SecretSecret123" not in text
    assert "private-value" not in text
    assert report.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (OSError(28, "No space left on device"), 3, "The disk is full"),
        (MemoryError(), 3, "not enough memory"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_foreseen_accidents_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, part: str
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(run_commands, "show_runs", fail)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert cli.main(["runs"]) == code
    assert part in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_versions_name_what_is_installed() -> None:
    assert {"python", "awq-tui", "torch"} <= set(crash.versions())


# Runs with a stand-in for the engine


def quantize(*options: str) -> int:
    return cli.main(["quantize", "tiny", "-o", "out", *options])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Engine:
    def choose(ending: str) -> None:
        assert model.is_dir()
        fake_engine.install(monkeypatch, tmp_path, ending)

    return choose


def test_finished_run_prints_progress_and_result(capsys: Capture, engine: Engine, tmp_path: Path) -> None:
    engine("done")
    assert quantize() == 0
    captured = capsys.readouterr()
    assert "block 2/2" in captured.err
    assert captured.out.splitlines()[:2] == [str(tmp_path / "out"), "7.3 MB -> 2.7 MB, 4.16 bits per weight"]
    config = list_runs()[0].config()
    assert (config.model, config.output) == (str(tmp_path / "tiny"), str(tmp_path / "out"))


def test_json_is_exactly_one_object_with_the_promised_keys(capsys: Capture, engine: Engine) -> None:
    engine("done")
    assert quantize("--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= PROMISED


def test_engines_failure_becomes_message_and_exit_code(capsys: Capture, engine: Engine) -> None:
    engine("failed")
    assert quantize() == 3
    assert capsys.readouterr().err.splitlines()[-1] == "awq-tui: The disk is full␛[2J; free some space."


def test_death_without_a_word_points_at_the_log(capsys: Capture, engine: Engine) -> None:
    engine("died")
    assert quantize() == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "died (see" in last
    assert "engine.log" in last
    assert f"awq-tui resume {list_runs()[0].id}" in last
    assert "Its last words: terminate called" in last


@DETACHED
def test_detached_run_prints_its_id_and_goes_on(capsys: Capture, engine: Engine) -> None:
    engine("cancelled")
    assert quantize("--detach") == 0
    run = find_run(capsys.readouterr().out.strip())
    assert run.status() is RunStatus.RUNNING
    assert cli.main(["rm", run.id]) == 2
    assert "still running" in capsys.readouterr().err
    assert cli.main(["resume", run.id]) == 2
    assert "watch it with" in capsys.readouterr().err
    assert cli.main(["cancel", run.id]) == 0
    assert cli.main(["watch", run.id]) == 130
    assert f"was cancelled with 2 of 2 blocks done; go on with `awq-tui resume {run.id}`" in capsys.readouterr().err
    assert cli.main(["cancel", run.id]) == 2
    assert "nothing to cancel" in capsys.readouterr().err


def test_cancelled_run_is_resumed(capsys: Capture, engine: Engine) -> None:
    engine("died")
    assert quantize() == 1
    engine("done")
    run = list_runs()[0]
    assert cli.main(["resume", run.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == run.id
    assert cli.main(["resume", run.id]) == 2
    assert "there is nothing left to do" in capsys.readouterr().err


def interrupt_once_it_runs() -> threading.Thread:
    """Press ctrl-c when the engine has begun to talk."""

    def press() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(run.records() for run in list_runs()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_cancels_and_says_how_to_go_on(capsys: Capture, engine: Engine) -> None:
    engine("cancelled")
    thread = interrupt_once_it_runs()
    assert quantize() == 130
    thread.join()
    error = capsys.readouterr().err
    assert "Cancelling: the engine stops after the present step" in error
    assert error.splitlines()[-1].endswith(f"go on with `awq-tui resume {list_runs()[0].id}`.")
    assert list_runs()[0].status() is RunStatus.CANCELLED


@DETACHED
def test_ctrl_c_while_watching_leaves_the_run_alone(capsys: Capture, engine: Engine) -> None:
    engine("cancelled")
    assert quantize("--detach") == 0
    run = list_runs()[0]
    thread = interrupt_once_it_runs()
    assert cli.main(["watch", run.id]) == 130
    thread.join()
    assert "goes on; watch it again" in capsys.readouterr().err
    assert not run.cancel_requested()
    run.request_cancel()
    while run.is_locked():
        time.sleep(0.02)


# Looking at runs


def test_watching_an_ended_run_replays_it(capsys: Capture) -> None:
    ended_run()
    assert cli.main(["watch", "latest"]) == 0
    captured = capsys.readouterr()
    assert "block 1/2" in captured.err
    assert "4.16 bits per weight" in captured.out


def test_runs_are_listed_even_when_one_is_damaged(capsys: Capture) -> None:
    assert cli.main(["runs"]) == 0
    assert "There are no runs" in capsys.readouterr().err
    damaged, fine = ended_run(started()), ended_run()
    (damaged.path / "run.json").write_text("{")
    assert cli.main(["runs"]) == 0
    table = capsys.readouterr().out
    assert "unreadable" in table
    assert f"{fine.id}" in table
    assert "100%" in table
    assert "W4 g128 balanced" in table
    assert cli.main(["runs", "--json"]) == 0
    rows = {row["run_id"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert (rows[fine.id]["status"], rows[damaged.id]["status"]) == ("done", "unreadable")


def test_removing_runs(capsys: Capture) -> None:
    first, second = ended_run(), ended_run()
    assert cli.main(["rm", second.id, first.id]) == 0
    assert capsys.readouterr().err.count("Removed run") == 2
    assert list_runs() == []
    fails(capsys, ["rm", "nothing"], 2, "There is no run 'nothing'")


# Inspect


def test_inspect_shows_every_column_of_a_run(capsys: Capture) -> None:
    ended_run()
    assert cli.main(["inspect", "latest"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    names = "block layer bits group tokens alpha mean max min std max/mean >2x >5x <0.5x rounding AWQ final ratio"
    assert header.split() == [*names.split(), "Δweight", "Δoutput"]
    expected = "0 self_attn.q_proj 4 128 - 0.50 1.10 3.30 0.30 0.40 3.0x 4.0% 0% 10% 4.0e-4 1.5e-4 1.0e-4 0.25x "
    expected += "+20% -75%"
    assert first.split() == expected.split()


def test_inspect_reads_a_run_that_is_still_working_and_a_folder(capsys: Capture, tmp_path: Path) -> None:
    ended_run(started(), planned(), *block(0))
    assert cli.main(["inspect", "latest", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 2
    (tmp_path / REPORT_NAME).write_text(json.dumps(build_report(replay(records(whole_run())), RESULT)))
    assert cli.main(["inspect", ".", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["source"] == str(tmp_path)
    layer = data["layers"][0]
    assert (layer["loss_awq"], layer["loss_final"], layer["histogram"]["counts"]) == (1.5e-4, 1e-4, [1, 6, 1])


def test_inspect_sorts_the_worst_first_and_the_unknown_last(capsys: Capture) -> None:
    events = [started(), planned(3), scaled(1, LINEARS[0], 9.0), scaled(2, LINEARS[0], 4.0)]
    ended_run(*events, *(quantized(number, LINEARS[0]) for number in range(3)))
    for name in ("max_over_mean", "max/mean"):
        assert cli.main(["inspect", "latest", "--sort", name, "--csv"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row["block"] for row in rows] == ["1", "2", "0"]
        assert rows[-1]["max_over_mean"] == ""
    fails(
        capsys,
        ["inspect", "latest", "--sort", "beauty"],
        2,
        "There is no column 'beauty' to sort by; choose one of block",
    )


def test_inspect_by_type(capsys: Capture) -> None:
    ended_run()
    assert cli.main(["inspect", "latest", "--by-type", "--sort", "type"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["type", "layers"], ["down_proj", "2"], ["q_proj", "2"]]
    assert cli.main(["inspect", "latest", "--by-type", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["types"]) == 2


def test_inspect_marks_outliers(capsys: Capture) -> None:
    events = [started(), planned(5)]
    for number in range(5):
        events += [scaled(number, LINEARS[0], 30.0 if number == 4 else 3.0), quantized(number, LINEARS[0])]
    ended_run(*events)
    assert cli.main(["inspect", "latest"]) == 0
    assert "1 layers stand out in max/mean among their kind: 4 self_attn.q_proj" in capsys.readouterr().err


def test_inspect_says_what_it_cannot_show(capsys: Capture, model: Path) -> None:
    fails(capsys, ["inspect", str(model)], 2, "was not quantized by awq-tui")
    fails(capsys, ["inspect", "org/name"], 2, "inspect reads a run or a model folder on this machine")
    ended_run(started())
    fails(capsys, ["inspect", "latest"], 2, "has not finished a layer")
