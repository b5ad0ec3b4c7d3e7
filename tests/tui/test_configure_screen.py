"""The configure form: what it refuses, what it forecasts, what it starts."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, Label

from awq_engine.checkpoint import read_checkpoint
from awq_engine.cli import build_parser
from awq_engine.command_line import command
from awq_engine.commands.quantize import config_of
from awq_engine.config import Format, Method, Preset, RunConfig
from awq_engine.errors import NetworkError
from awq_engine.runs import Run, create_run, list_runs
from awq_tui import catalog
from awq_tui.app import AwqApp
from awq_tui.catalog import Entry, Where
from awq_tui.draft import Draft, TextSource, review
from awq_tui.draft_fields import ALL
from awq_tui.places import screen_of
from awq_tui.screens.configure import ConfigureScreen
from awq_tui.screens.recipes import RecipesModal
from awq_tui.screens.run import RunScreen
from awq_tui.widgets.choice import Choice
from tests.engine.safetensors_files import llama_shapes, model_folder
from tests.tui.hosting import SIZES, screen_text, staged, until


@pytest.fixture
def entry() -> Entry:
    return catalog.describe_folder(model_folder(Path("tiny").absolute()), Where.DISK)


@contextlib.asynccontextmanager
async def configuring(entry: Entry, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[None]]:
    """The form, once its first review is on screen."""
    async with staged(ConfigureScreen(entry), size) as pilot:
        await until(pilot, lambda: "linears in" in screen_text(pilot) or "known once" in screen_text(pilot))
        yield pilot


def form(pilot: Pilot[None]) -> ConfigureScreen:
    assert isinstance(pilot.app.screen, ConfigureScreen)
    return pilot.app.screen


def is_bright(row: Widget) -> bool:
    """Whether a field's label says that it is the one under the cursor."""
    return any(label.styles.text_style.bold for label in row.query(Label))


def focus(pilot: Pilot[None], selector: str) -> None:
    form(pilot).query_one(selector).focus()


@pytest.mark.parametrize("size", SIZES)
async def test_the_plan_is_there_at_once(entry: Entry, size: tuple[int, int]) -> None:
    async with configuring(entry, size) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        text = screen_text(pilot)
        for words in ("14 linears in 2 blocks", "bits each", "are free", "Group size", "tiny-AWQ-W4-G128"):
            assert words in text


async def test_another_group_size_changes_size_and_suggested_folder(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        await until(pilot, lambda: "4.16 bits each" in screen_text(pilot))
        focus(pilot, "#group-size")
        await pilot.press("left")
        await until(pilot, lambda: "4.31 bits each" in screen_text(pilot))
        assert form(pilot).query_one("#output", Input).value.endswith("tiny-AWQ-W4-G64")


async def test_a_folder_the_person_named_is_kept(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        form(pilot).query_one("#output", Input).value = "mine"
        focus(pilot, "#group-size")
        await pilot.press("left")
        await until(pilot, lambda: "4.31 bits each" in screen_text(pilot))
        assert form(pilot).query_one("#output", Input).value == "mine"


async def test_a_group_size_that_does_not_divide_names_those_that_do(tmp_path: Path) -> None:
    odd = catalog.describe_folder(model_folder(tmp_path / "odd", llama_shapes(hidden=64, mlp=192)), Where.DISK)
    async with configuring(odd) as pilot:
        await until(pilot, lambda: form(pilot).query_one("#group-size", Choice).value == 64)
        await until(pilot, lambda: "✗ 128" in screen_text(pilot))
        focus(pilot, "#group-size")
        await pilot.press("right")
        await until(pilot, lambda: "does not divide" in screen_text(pilot))
        text = " ".join(screen_text(pilot).replace("│", " ").split())
        assert "32, 64, row (-1)" in text
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert list_runs() == []


async def test_an_existing_folder_asks_for_the_overwrite_switch(entry: Entry) -> None:
    model_folder(Path("old"))
    async with configuring(entry) as pilot:
        form(pilot).query_one("#output", Input).value = "old"
        await until(pilot, lambda: "switch on overwrite" in " ".join(screen_text(pilot).replace("│", " ").split()))
        await until(pilot, lambda: "● stop   ○ overwrite" in screen_text(pilot))  # scrolled to when it is drawn
        form(pilot).query_one("#overwrite", Choice).choose(True)
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        assert form(pilot).form.draft.config().overwrite


async def test_start_goes_to_the_field_that_stands_in_the_way(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        form(pilot).query_one("#samples", Input).value = "many"
        await until(pilot, lambda: "must be a whole number" in screen_text(pilot))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: (focused := pilot.app.focused) and focused.id == "samples")


async def test_up_and_down_walk_the_fields_from_end_to_end(entry: Entry) -> None:
    async with configuring(entry, (80, 24)) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        focus(pilot, "#bits")
        await until(pilot, lambda: (focused := pilot.app.focused) and focused.id == "bits")
        visited = []
        for _ in range(20):
            assert pilot.app.focused is not None
            visited.append(pilot.app.focused.id)
            await pilot.press("down")
        needless = ("text", "overwrite")
        assert visited == [field.id for field in ALL if field.name not in needless]
        await pilot.press("up", "up")
        assert pilot.app.focused is not None
        assert pilot.app.focused.id == "on"


@pytest.mark.parametrize("size", SIZES)
async def test_every_field_is_on_screen_when_it_is_reached(entry: Entry, size: tuple[int, int]) -> None:
    """Also on a small terminal, where the form scrolls."""
    async with configuring(entry, size) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        focus(pilot, "#bits")
        for words in ("Bits", "What counts", "Output", "Overrides", "Memory", "Seed", "Start  "):
            for _ in range(20):
                if words in screen_text(pilot):
                    break
                await pilot.press("down")
                await pilot.pause()
            assert words in screen_text(pilot)


async def test_a_size_and_overrides_are_taken_and_checked_as_they_are_typed(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        focus(pilot, "#override")
        await pilot.press(*"*.o_prj=skip")
        await until(pilot, lambda: "fits none of" in " ".join(screen_text(pilot).replace("│", " ").split()))
        form(pilot).query_one("#override", Input).value = "*.o_proj=skip"
        await until(pilot, lambda: "12 linears in 2 blocks" in screen_text(pilot))
        form(pilot).query_one("#override", Input).value = "*.o_proj=bits:8"
        await until(pilot, lambda: "only skip works" in " ".join(screen_text(pilot).replace("│", " ").split()))
        form(pilot).query_one("#override", Input).value = ""
        form(pilot).query_one("#target-bpw", Input).value = "6.5"
        await until(pilot, lambda: "6.50 bits each" in screen_text(pilot))
        assert form(pilot).query_one("#output", Input).value == "./tiny-AWQ-6.5bpw"
        assert form(pilot).form.draft.config().target_bpw == 6.5


async def test_ctrl_s_starts_the_run_and_opens_it(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Run] = []
    monkeypatch.setattr(AwqApp, "start_engine", lambda app, run, queued: started.append(run))
    async with configuring(entry) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        await pilot.press("ctrl+s", "ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    assert started == list_runs()
    assert len(started) == 1
    config = started[0].config()
    assert (config.model, config.group_size, config.preset) == (str(entry.path), 128, Preset.BALANCED)


async def test_f8_queues_the_run_and_stays_for_the_next_while_others_are_at_work(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(AwqApp, "start_engine", lambda app, run, queued: started.append(queued))
    async with configuring(entry) as pilot:
        assert isinstance(pilot.app, AwqApp)
        app = pilot.app
        lock = create_run(RunConfig("/m", str(Path("taken").absolute()))).take_lock()
        await until(pilot, lambda: any(summary.running for summary in app.summaries))
        form(pilot).form.put("output", "taken")
        await until(pilot, lambda: "is at work, or waits, writes to" in screen_text(pilot))
        form(pilot).form.put("output", "free")
        await pilot.press("f8")
        await until(pilot, lambda: "Queued" in screen_text(pilot))
        assert isinstance(pilot.app.screen, ConfigureScreen)
        os.close(lock)
        await until(pilot, lambda: not any(summary.running for summary in app.summaries))
        form(pilot).form.put("bits", 4)
        form(pilot).form.put("output", "another")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        assert started == [True, True]


async def test_what_was_chosen_a_moment_ago_is_what_starts(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start waits for the model and for no review of an older form."""
    started: list[Run] = []
    monkeypatch.setattr(AwqApp, "start_engine", lambda app, run, queued: started.append(run))
    async with staged(ConfigureScreen(entry)) as pilot:
        focus(pilot, "#preset")
        await pilot.press("right", "ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    assert [run.config().preset for run in started] == [Preset.BEST]


async def test_a_half_filled_form_comes_back(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        for name, value in (("bits", 8), ("layout", Format.GPTQ), ("samples", "7"), ("overrides", "*.o_pr")):
            form(pilot).form.put(name, value)
        await until(pilot, lambda: "not understood" in screen_text(pilot))
        kept = form(pilot).place()
        left = form(pilot).form.draft
    again = screen_of(kept)
    assert isinstance(again, ConfigureScreen)
    async with staged(again) as pilot:
        await until(pilot, lambda: "not understood" in screen_text(pilot))
        assert form(pilot).form.draft == left
        form(pilot).form.put("overrides", "")
        form(pilot).form.put("bits", 4)
        await until(pilot, lambda: form(pilot).form.draft.output == "./tiny-AWQ-W4-G128-gptq", "the name still follows")
    shutil.rmtree("tiny")
    assert screen_of(kept) is None


async def test_what_a_field_means_is_told_while_it_has_the_focus(entry: Entry) -> None:
    async with configuring(entry, (80, 24)) as pilot:
        await until(pilot, lambda: "Inputs that share one scale" in screen_text(pilot))
        await pilot.press("down", "down")
        await until(pilot, lambda: "AWQ as AutoAWQ does it" in screen_text(pilot))
        await until(pilot, lambda: [row.id for row in form(pilot).query(".field") if is_bright(row)] == ["preset-row"])
        assert all(field.about for field in ALL)


async def test_a_recipe_is_saved_and_fills_the_form_of_another_model(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        focus(pilot, "#preset")
        await pilot.press("right")
        form(pilot).query_one("#samples", Input).value = "77"
        form(pilot).query_one("#output", Input).value = "mine"
        await pilot.press("f5")
        await until(pilot, lambda: "No recipe yet" in screen_text(pilot))
        await pilot.press(*"my own", "enter")
        await until(pilot, lambda: "my own" in screen_text(pilot) and "77 x 512" in screen_text(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfigureScreen))
    async with configuring(entry) as pilot:
        await pilot.press("f5")
        await until(pilot, lambda: "W4 g128 best awq" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfigureScreen))
        draft = form(pilot).form.draft
        assert (draft.preset, draft.samples, draft.output) == (Preset.BEST, "77", "./tiny-AWQ-W4-G128")
        await pilot.press("f5")
        await until(pilot, lambda: isinstance(pilot.app.screen, RecipesModal))
        await pilot.press("d")
        await until(pilot, lambda: "No recipe yet" in screen_text(pilot))


async def test_an_engine_that_cannot_start_leaves_no_run_behind(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(app: AwqApp, run: Run, queued: bool) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(AwqApp, "start_engine", refuse)
    async with configuring(entry) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "temporarily unavailable" in screen_text(pilot))
    assert list_runs() == []


async def test_y_copies_the_command_line(entry: Entry) -> None:
    async with configuring(entry) as pilot:
        await until(pilot, lambda: "✓ Ready" in screen_text(pilot))
        await pilot.press("y")
        await until(pilot, lambda: pilot.app.clipboard)
        assert shlex.split(pilot.app.clipboard)[:3] == ["awq-tui", "quantize", str(entry.path)]


async def test_a_model_on_the_hub_that_cannot_be_reached_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(entry: Entry) -> None:
        raise NetworkError("Offline mode is on [/x].")

    monkeypatch.setattr("awq_tui.screens.configure.open_checkpoint", refuse)
    async with configuring(Entry(Where.HUB, "org/tiny", "org/tiny")) as pilot:
        await until(pilot, lambda: "✗ Offline mode is on [/x]." in screen_text(pilot))
        assert "✓ Ready" not in screen_text(pilot)
        assert form(pilot).form.draft.config().model == "org/tiny"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert list_runs() == []


def draft(**changes: object) -> Draft:
    return replace(Draft("/m", "out"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"output": " "}, "output", "Name the folder"),
        ({"samples": "0"}, "samples", "at least 1"),
        ({"seq_len": ""}, "seq-len", "whole number"),
        ({"bits": 5}, "bits", "choose one of"),
        ({"bits": 3}, "format", "choose 4, or the format compressed-tensors"),
        ({"text_source": TextSource.FILE}, "text", "Name a calibration file"),
        ({"text_source": TextSource.FILE, "text": "absent.txt"}, "text", "There is no file"),
        ({"text_source": TextSource.FILE, "text": "image.png"}, "text", "is none of"),
        ({"text_source": TextSource.HUB}, "text", "Name a data set"),
        ({"output": "file"}, "output", "file"),
        ({"output": "home", "overwrite": True}, "output", "never overwritten"),
        ({"overrides": "*.o_proj"}, "override", "is not understood"),
        ({"overrides": "*.o_proj=bits:8"}, "override", "only skip works there"),
        ({"overrides": "*=skip *.q=group:0", "layout": Format.GPTQ}, "group-size", "group size of 0"),
        ({"target_bpw": "small"}, "target-bpw", "number of bits per weight"),
        ({"target_bpw": "-1"}, "target-bpw", "choose one above 0"),
        ({"max_memory": "much"}, "max-memory", "write it like 4GB"),
        ({"workers": "0"}, "workers", "at least 1"),
        ({"threads": "x"}, "threads", "whole number"),
        ({"on": "box"}, "on", "no address of a Ray cluster"),
        ({"seed": "x"}, "seed", "whole number"),
        ({"seed": "-1"}, "seed", "at least 0"),
    ],
)
def test_what_cannot_work_is_a_sentence_on_its_field(changes: dict[str, object], field: str, words: str) -> None:
    Path("image.png").write_text("")
    Path("file").write_text("")
    Path("home").mkdir()
    Path("home/letter").write_text("dear")
    found = review(draft(**changes), None, None, None)
    assert set(found.problems) == {field}
    assert words in found.problems[field]
    assert not found.ready


def test_the_model_itself_is_never_the_output() -> None:
    folder = model_folder(Path("tiny").absolute())
    found = review(draft(output="tiny", overwrite=True), read_checkpoint(folder), None, None)
    assert "model itself" in found.problems["output"]


def test_little_memory_and_little_text_are_warnings() -> None:
    Path("short.txt").write_text("a few words")
    checkpoint = read_checkpoint(model_folder(Path("tiny").absolute()))
    found = review(draft(text_source=TextSource.FILE, text="short.txt"), checkpoint, None, 1 << 20)
    assert found.ready
    assert [warning.split()[0] for warning in found.warnings] == ["Peak", "The"]


def test_the_form_can_ask_for_all_that_the_command_line_can() -> None:
    """Every option of `quantize` but those that are about the command itself has a value in a draft's config."""
    asked = draft(
        text_source=TextSource.SELF, answer_only=True, overrides=" *.0.*=bits:8  *.o_proj=skip ", target_bpw=" 5.5 ",
        max_memory="4GB", seed="3", layout=Format.GPTQ_V2, device="cpu", overwrite=True, symmetric=True, lm_head=True,
        workers="2", threads="8", on="ray://box:10001",
    )  # fmt: skip
    config = asked.config()
    assert (config.calibration, config.answer_only, config.target_bpw) == ("self", True, 5.5)
    assert config.lm_head
    assert (config.workers, config.threads, config.on) == (2, 8, "ray://box:10001")
    assert (config.overrides, config.max_memory, config.seed) == (("*.0.*=bits:8", "*.o_proj=skip"), 4 * 10**9, 3)
    assert review(replace(asked, output="other"), None, None, None).problems == {}


def test_rounding_needs_no_text() -> None:
    assert review(draft(method=Method.RTN, text_source=TextSource.FILE), None, None, None).ready


@pytest.mark.parametrize(
    "config",
    [
        RunConfig("/models/it's here; rm -rf", "/out/$(x) y"),
        RunConfig("org/name", "/out", group_size=-1, symmetric=True, preset=Preset.BEST, overwrite=True, device="cpu"),
        RunConfig("/m", "/out", method=Method.RTN, calibration="hub:c4:en", samples=7, seq_len=33),
        RunConfig(
            "/m", "/out", calibration="self", answer_only=True, seed=7, max_memory=4_000_000_000, target_bpw=4.25
        ),
        RunConfig("/m", "/out", lm_head=True),
        RunConfig("/m", "/out", workers=4, threads=2, on="ray://box:10001"),
        RunConfig("/m", "/out", bits=3, format=Format.GPTQ_V2, overrides=("*.0.*=skip", "*.o_proj=bits:8,group:64")),
    ],
)
def test_the_copied_command_is_the_same_run(config: RunConfig) -> None:
    """The command line reads back exactly the config that the form would start."""
    program, *words = shlex.split(command(config))
    assert program == "awq-tui"
    assert config_of(build_parser().parse_args(words)) == config
