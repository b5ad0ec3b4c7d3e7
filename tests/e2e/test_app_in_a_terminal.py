"""The real `awq-tui` in a real (pseudo-)terminal, with real engines and a real chat process, by keyboard alone."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_engine.events import RunStarted
from awq_engine.runs import Run, RunStatus
from tests.e2e.conftest import COMMAND, Workplace
from tests.e2e.terminal import DOWN, ENTER, ESCAPE, F2, F9, LEFT, RIGHT, TAB, Terminal, ctrl

LABELS = ("Samples", "Tokens each", "Output")
OpenApp = Callable[..., Terminal]


@pytest.fixture
def open_app(workplace: Workplace) -> OpenApp:
    """Start the app in the folder of the model, on its first screen."""

    def start(size: tuple[int, int] = (120, 40)) -> Terminal:
        (workplace.home / "settings.json").unlink(missing_ok=True)
        return Terminal([COMMAND], workplace.here, workplace.env, size)

    return start


def only_run(workplace: Workplace, known: set[str]) -> Run:
    """The one run that is there beside the known ones."""
    (path,) = [path for path in (workplace.home / "runs").iterdir() if path.name not in known]
    return Run(path)


def known_runs(workplace: Workplace) -> set[str]:
    runs = workplace.home / "runs"
    return {path.name for path in runs.iterdir()} if runs.is_dir() else set()


def filter_tiny(app: Terminal) -> None:
    """On the first screen, only the model is left to choose."""
    app.wait_for("disk    tiny")
    app.send("/")
    app.wait_for("esc Clear")
    app.send(*"disk tiny")
    app.wait_until(lambda: "demo stories" not in app.screen() and "disk    tiny" in app.screen(), "one model")
    app.send(ENTER)
    app.wait_for("⏎ Quantize")


def pick_tiny(app: Terminal) -> None:
    """From the first screen to the form, by typing the model's name."""
    filter_tiny(app)
    app.send(ENTER)
    app.wait_for("Group size")


def configure(app: Terminal, *, samples: int, tokens: int) -> None:
    """Groups of 32 and a text of our own; the form says that it can start."""
    app.wait_for("Ready: ctrl+s starts it")
    app.send(LEFT)
    app.wait_for("tiny-AWQ-W4-G32")
    app.press(DOWN, DOWN, DOWN, DOWN, RIGHT)
    app.wait_for("● file")
    app.wait_for("Name a calibration file")
    app.press(DOWN)
    app.send(*"stories.txt")
    app.wait_for("stories.txt")
    for label, value in (("Samples", samples), ("Tokens each", tokens)):
        app.send(ENTER)
        app.wait_for_cursor(label)
        app.send(*str(value))  # it replaces what was there
        app.wait_until(lambda label=label, value=value: fields(app)[label] == str(value), f"{label} {value}")
    app.wait_for("Ready: ctrl+s starts it")


def fields(app: Terminal) -> dict[str, str]:
    """The text fields of the form as they are on the screen."""
    lines = [line[:60].strip() for line in app.screen().splitlines()]
    return {label: line.removeprefix(label).strip() for line in lines for label in LABELS if line.startswith(label)}


def test_from_picking_a_model_to_chatting_with_the_result(open_app: OpenApp, workplace: Workplace) -> None:
    known = known_runs(workplace)
    with open_app() as app:
        pick_tiny(app)
        configure(app, samples=8, tokens=32)
        app.send(ctrl("s"))
        app.wait_for("loss kept vs rounding")
        app.wait_for("✓ read back and compared", 180)
        assert "100 %" in app.screen()
        run = only_run(workplace, known)
        assert run.status() is RunStatus.DONE
        assert (workplace.here / "tiny-AWQ-W4-G32" / "model.safetensors").is_file()
        inspect(app)
        chat(app)
        app.send(ctrl("q"))
        assert app.wait_for_exit() == 0
        assert app.restored()


def inspect(app: Terminal) -> None:
    """From the finished run to its layers, and to one line per type."""
    app.send("i")
    app.wait_for("14 layers, by ratio")
    app.wait_for("block 1 · ")
    app.send("t")
    app.wait_for("types of 14 layers")
    app.send("/")
    app.wait_for_cursor("types of 14 layers")
    app.send(*"down", ENTER)
    app.wait_for("types of 2 of 14 layers")


def chat(app: Terminal) -> None:
    """From the inspection to a conversation: a reply streams and is stopped."""
    app.send("c")
    app.wait_for("context 4096 · ")
    app.send(F2)
    app.wait_for_cursor("System prompt")
    app.send(*[TAB] * 6)
    app.wait_for_cursor("max tokens")
    app.send(*"5000", F2)  # long enough to be stopped
    app.wait_until(lambda: "of one reply" not in app.screen(), "the conversation again")
    app.send(*"Hello", ENTER)
    app.wait_for("▌ Hello")
    app.wait_until(lambda: len(reply(app, "Hello")) > 40, "some text of the reply")
    assert "tok/s" not in app.screen()
    app.send(ESCAPE)
    app.wait_for("· stopped")
    assert "tok/s · first" in app.screen()


def reply(app: Terminal, question: str) -> str:
    """What stands between the last question and the prompt."""
    return app.screen().split(f"▌ {question}")[-1].split("╭")[0].strip()


def test_closing_the_terminal_leaves_the_engine_at_work(open_app: OpenApp, workplace: Workplace) -> None:
    known = known_runs(workplace)
    with open_app((80, 24)) as app:
        pick_tiny(app)
        app.wait_for("Ready: ctrl+s starts it")
        app.send(F9)
        app.wait_for("loss kept vs rounding")
        app.hang_up()
    run = only_run(workplace, known)
    assert run.status() is RunStatus.RUNNING
    with open_app((80, 24)) as app:
        app.wait_for("tiny is being quantized now")
        app.send("2")
        app.wait_for("● running")
        app.send(ENTER)
        app.wait_for("✓ read back and compared", 180)
        app.send(ctrl("q"))
        assert app.wait_for_exit() == 0
    assert run.status() is RunStatus.DONE
    assert sum(isinstance(record.event, RunStarted) for record in run.records()) == 1


def test_a_killed_app_leaves_no_process_behind(open_app: OpenApp, workplace: Workplace) -> None:
    """SIGKILL gives it no time to tell its chat process, which ends by itself; runs go on, as above."""
    with open_app() as app:
        filter_tiny(app)
        app.send("c")
        app.wait_for("context 4096 · ")
        assert len(processes_of(workplace)) == 2
        app.signal(signal.SIGKILL)
        app.wait_for_exit()
    deadline = time.monotonic() + 30
    while processes_of(workplace):
        assert time.monotonic() < deadline, processes_of(workplace)
        time.sleep(0.05)


def processes_of(workplace: Workplace) -> list[str]:
    """Command lines of all processes that live in the workplace's home (Linux)."""
    mark = f"AWQ_TUI_HOME={workplace.home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_resizing_redraws_for_the_new_size(open_app: OpenApp) -> None:
    with open_app((80, 24)) as app:
        app.wait_for("demo stories (bundled)")
        app.wait_until(lambda: not panes_side_by_side(app), "the details below the list")
        app.resize(50, 12)
        app.wait_for("This terminal is too small: 50x12")
        app.resize(130, 40)
        app.wait_until(lambda: panes_side_by_side(app), "the details beside the list")
        app.send(ctrl("c"))
        app.wait_for("Press ctrl+c again to quit")
        app.send(ctrl("c"))
        assert app.wait_for_exit() == 0
        assert app.restored()


def panes_side_by_side(app: Terminal) -> bool:
    return "╮╭" in app.screen()


def test_names_with_escapes_and_markup_reach_the_screen_as_text(open_app: OpenApp, workplace: Workplace) -> None:
    evil = workplace.here / "evil\x1b]0;owned\x07[red]"
    shutil.copytree(workplace.here / "tiny", evil)
    try:
        with open_app() as app:
            app.wait_for("evil␛]0;owned␇[red]")
            app.send("/")
            app.wait_for("esc Clear")
            app.send(*"owned", ENTER)
            app.wait_for("⏎ Quantize")
            app.wait_until(lambda: "demo stories" not in app.screen(), "one model")
            app.send(ENTER)
            app.wait_for("Ready: ctrl+s starts it")
            app.send(ctrl("q"))
            assert app.wait_for_exit() == 0
        assert b"\x1b]0;owned" not in app.raw
    finally:
        shutil.rmtree(evil)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_ends_the_app_and_restores_the_terminal(open_app: OpenApp, number: signal.Signals) -> None:
    with open_app((80, 24)) as app:
        app.wait_for("a Type a path")
        app.signal(number)
        assert app.wait_for_exit() == 128 + number
        assert app.restored()
