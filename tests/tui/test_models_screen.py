"""The models screen, driven by keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from awq_engine.downloads import Download
from awq_tui import hub_catalog
from awq_tui.app import AwqApp
from awq_tui.catalog import Entry, Where
from awq_tui.screens.configure import ConfigureScreen
from awq_tui.screens.error import ErrorModal
from awq_tui.screens.models import ModelsScreen
from awq_tui.screens.path import PathModal, complete_folder
from awq_tui.settings import load_settings
from awq_tui.widgets.model_details import draw_download
from awq_tui.widgets.model_table import ModelTable
from tests.engine.safetensors_files import llama_shapes, model_folder
from tests.tui.hosting import SIZES, screen_text, until


@contextlib.asynccontextmanager
async def models(size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[None]]:
    """The app on its first screen, with the bundled model listed."""
    app = AwqApp()
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: names(pilot)[:1] == ["demo stories (bundled)"])
        yield pilot


def table(pilot: Pilot[None]) -> ModelTable:
    return pilot.app.screen.query_one(ModelTable)


def names(pilot: Pilot[None]) -> list[str]:
    return [entry.name for entry in table(pilot)._entries]


async def cursor_to(pilot: Pilot[None], name: str) -> None:
    await until(pilot, lambda: name in names(pilot), name)
    table(pilot).move_cursor(row=names(pilot).index(name), animate=False)
    await until(pilot, lambda: (current := table(pilot).current) and current.name == name)


@pytest.mark.parametrize("size", SIZES)
async def test_the_demo_is_there_with_what_it_would_become(size: tuple[int, int]) -> None:
    async with models(size) as pilot:
        await until(pilot, lambda: "after W4 g128" in screen_text(pilot))
        text = screen_text(pilot)
        for words in ("demo stories", "7.3 MB", "bits/weight", "memory", "balanced", "llama"):
            assert words in text


async def test_local_models_appear_and_enter_configures_one() -> None:
    model_folder(Path("tiny"))
    async with models() as pilot:
        await cursor_to(pilot, "tiny")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfigureScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen))


async def test_a_broken_folder_shows_its_sentence_and_cannot_be_configured() -> None:
    (model_folder(Path("broken")) / "model.safetensors").unlink()
    async with models() as pilot:
        await cursor_to(pilot, "broken")
        await until(pilot, lambda: "✗ unusable" in screen_text(pilot) and "broken has a config" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ErrorModal))


async def test_a_name_full_of_markup_and_escapes_is_only_text() -> None:
    model_folder(Path("[bold]x[/nope] \x1b[31mred\u202e"))
    async with models((140, 40)) as pilot:
        await until(pilot, lambda: len(names(pilot)) == 2)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfigureScreen))
        text = screen_text(pilot)
        assert "[bold]x[/nope] ␛[31mred" in text
        assert "\x1b" not in text
        assert "\u202e" not in text


async def test_find_narrows_the_list_and_escape_widens_it() -> None:
    model_folder(Path("apple"))
    model_folder(Path("pear"))
    async with models() as pilot:
        await until(pilot, lambda: len(names(pilot)) == 3)
        await pilot.press("slash", *"pear")
        await until(pilot, lambda: names(pilot) == ["pear"])
        await pilot.press("escape")
        await until(pilot, lambda: len(names(pilot)) == 3)
        await pilot.press("down")
        assert pilot.app.focused is table(pilot)


async def test_the_hub_is_asked_once_for_a_word_typed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def search(query: str) -> list[Entry]:
        asked.append(query)
        return [Entry(Where.HUB, "org/Found", "org/Found", parameters=10**9, nbytes=2 * 10**9, gated=True)]

    monkeypatch.setattr(hub_catalog, "search_hub", search)
    async with models() as pilot:
        await pilot.press("slash", *"qwen")
        await until(pilot, lambda: "org/Found" in names(pilot))
        assert asked == ["qwen"]
        await cursor_to(pilot, "org/Found")
        await until(pilot, lambda: "Gated: accept the licence" in screen_text(pilot))


def test_a_download_is_a_bar_with_bytes_or_why_it_ended() -> None:
    assert draw_download(Download("m", going_on=True), 40).plain == "asking the Hub…"
    going_on = draw_download(Download("m", 10**9, 4 * 10**9, going_on=True), 40).plain
    assert "25 %" in going_on
    assert "1.0 GB of 4.0 GB" in going_on
    assert draw_download(Download("m", 1, 4, error="Stopped [/x]."), 40).plain == "✗ Stopped [/x]."


async def test_an_already_quantized_model_is_sent_to_chat_not_to_configure() -> None:
    model_folder(Path("done"), quantization_config={"quant_method": "awq", "bits": 4})
    async with models() as pilot:
        await cursor_to(pilot, "done")
        await until(pilot, lambda: "Already quantized (awq 4-bit)" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "Press c to chat" in screen_text(pilot))
        assert isinstance(pilot.app.screen, ModelsScreen)


async def test_inspect_is_dimmed_without_a_report() -> None:
    async with models() as pilot:
        assert not pilot.app.screen.active_bindings["i"].enabled
        assert pilot.app.screen.active_bindings["c"].enabled


async def test_a_typed_path_is_added_remembered_and_selected(tmp_path: Path) -> None:
    model_folder(tmp_path / "far" / "away")
    async with models() as pilot:
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathModal))
        pilot.app.screen.query_one(Input).value = str(tmp_path / "nowhere")
        await pilot.press("enter")
        await until(pilot, lambda: "There is no folder" in screen_text(pilot))
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{")
        pilot.app.screen.query_one(Input).value = str(tmp_path / "broken")
        await pilot.press("enter")
        await until(pilot, lambda: "valid JSON" in screen_text(pilot))
        pilot.app.screen.query_one(Input).value = str(tmp_path / "far")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen))
        await until(pilot, lambda: (current := table(pilot).current) and current.name == "away")
    assert load_settings().folders == (str(tmp_path / "far" / "away"),)


async def test_a_typed_hub_id_becomes_an_entry() -> None:
    async with models() as pilot:
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathModal))
        pilot.app.screen.query_one(Input).value = "org/unseen"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen) and "org/unseen" in names(pilot))


async def test_a_model_too_odd_for_group_128_is_forecast_with_the_next_that_fits() -> None:
    model_folder(Path("odd"), llama_shapes(hidden=64, mlp=192))
    async with models() as pilot:
        await cursor_to(pilot, "odd")
        await until(pilot, lambda: "after W4 g64" in screen_text(pilot))


def test_paths_are_completed_to_the_first_folder_that_fits(tmp_path: Path) -> None:
    for name in ("beta", "alpha", ".secret"):
        (tmp_path / name).mkdir()
    assert complete_folder(f"{tmp_path}/") == f"{tmp_path}/alpha/"
    assert complete_folder(f"{tmp_path}/b") == f"{tmp_path}/beta/"
    assert complete_folder(f"{tmp_path}/.s") == f"{tmp_path}/.secret/"
    assert complete_folder(f"{tmp_path}/zz") is None
    assert complete_folder(f"{tmp_path}/none/") is None


async def test_the_list_is_sorted_and_limited_by_parameters() -> None:
    model_folder(Path("aaa"))
    async with models((80, 24)) as pilot:
        await until(pilot, lambda: "aaa" in names(pilot))
        await pilot.press("s")
        await until(pilot, lambda: "2 models, by parameters" in screen_text(pilot))
        assert names(pilot) == ["demo stories (bundled)", "aaa"]
        await pilot.press("s", "s", "s")
        await until(pilot, lambda: "by name" in screen_text(pilot) and names(pilot)[0] == "aaa")
        await pilot.press("slash", *"<1m")
        await until(pilot, lambda: names(pilot) == ["aaa"])
