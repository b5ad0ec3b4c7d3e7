"""The chat screen over a worker without a model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input, TextArea

from awq_engine.report import REPORT_NAME
from awq_engine.sampling_settings import Sampling
from awq_tui.chat_client import ChatClient
from awq_tui.chats import list_chats
from awq_tui.screens.chat import ChatScreen
from awq_tui.screens.chats import ChatTable
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.pick import comparison_entries, original_of
from awq_tui.screens.sampling import SamplingModal, as_text, read_sampling
from awq_tui.settings import load_settings
from awq_tui.widgets.chat_log import ChatLog
from awq_tui.widgets.choice import Choice
from awq_tui.widgets.message import Answer
from awq_tui.widgets.prompt import Prompt
from tests.engine.safetensors_files import model_folder
from tests.tui.hosting import SIZES, screen_text, staged, until
from tests.tui.test_preferences import configure

FAKE = Path(__file__).with_name("fake_chat_worker.py")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))


def chat_of(mode: str = "normal") -> ChatScreen:
    return ChatScreen("/models/Tiny-AWQ", ChatClient("/models/Tiny-AWQ", [sys.executable, str(FAKE), mode]))


def replies_of(screen: ChatScreen) -> list[str]:
    return [message["content"] for message in screen.messages if message["role"] == "assistant"]


async def ask(pilot, screen: ChatScreen, text: str) -> None:
    """Write and send; wait for the complete reply."""
    before = len(replies_of(screen))
    screen.query_one(Prompt).text = text
    await pilot.press("enter")
    await until(pilot, lambda: len(replies_of(screen)) > before, f"a reply to {text!r}")
    await until(pilot, lambda: "tok/s" in screen_text(pilot))


@pytest.mark.parametrize("size", SIZES)
async def test_a_question_is_answered_with_figures(size: tuple[int, int]) -> None:
    screen = chat_of()
    async with staged(screen, size) as pilot:
        await until(pilot, lambda: "4.2 bits" in screen_text(pilot))
        assert "reference: this is a test" in screen_text(pilot)
        assert "our own decoder" in " ".join(screen_text(pilot).split())
        assert screen.query_one(Prompt).has_focus
        await pilot.press(*"say hi", "enter")
        await until(pilot, lambda: replies_of(screen) == ["hi"])
        await until(pilot, lambda: "31.5 tok/s" in screen_text(pilot))
        assert "7 tokens · 31.5 tok/s · first 0.38 s · context 19/4096" in screen_text(pilot)
        assert screen.query_one(Prompt).text == ""


async def test_a_question_may_come_before_the_model_is_ready() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say early")
        assert replies_of(screen) == ["early"]


async def test_ctrl_j_starts_a_line_and_enter_sends() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c")
        assert screen.query_one(Prompt).text == "a\nb\nc"
        await pilot.press("enter")
        await until(pilot, lambda: replies_of(screen) == ["a\nb\nc"])


async def test_enter_does_not_overtake_what_was_typed_before_it() -> None:
    """Keys that arrive in one burst, as from a paste or a fast typist, are sent whole."""
    screen = chat_of()
    async with staged(screen) as pilot:
        await until(pilot, lambda: "4.2 bits" in screen_text(pilot))
        for character in "say whales":
            pilot.app.post_message(events.Key("space" if character == " " else character, character))
        pilot.app.post_message(events.Key("enter", "\r"))
        await until(pilot, lambda: replies_of(screen) == ["whales"])
        assert screen.query_one(Prompt).text == ""


async def test_backspace_takes_away_what_was_typed_before_it() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        for key in ("a", "b", "backspace", "c", "left", "d"):
            pilot.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: screen.query_one(Prompt).text == "adc")


async def test_an_empty_prompt_sends_nothing() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await pilot.press("space", "enter")
        await pilot.pause()
        assert screen.messages == []


async def test_escape_stops_a_reply_and_keeps_it() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        screen.query_one(Prompt).text = "count"
        await pilot.press("enter")
        await until(pilot, lambda: "0 1 2" in screen_text(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: not screen.busy)
        await until(pilot, lambda: "stopped" in screen_text(pilot))
        assert replies_of(screen)[0].startswith("0 1 2")
        assert pilot.app.screen is screen


async def test_escape_leaves_only_after_a_question_when_there_is_something_to_lose() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say hi")
        client = screen.sides[0]._client
        screen.query_one(Prompt).text = "not sent"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("n")
        await until(pilot, lambda: pilot.app.screen is screen)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("y")
        await until(pilot, lambda: not screen.is_attached)
        await until(pilot, lambda: not client.alive)


async def test_again_replaces_the_last_reply() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say one")
        await ask(pilot, screen, "roles")
        assert replies_of(screen) == ["one", "user assistant user"]
        await pilot.press("ctrl+r")
        await until(pilot, lambda: not screen.busy and len(replies_of(screen)) == 2)
        assert replies_of(screen) == ["one", "user assistant user"]
        assert len(screen.query(Answer)) == 2


async def test_new_forgets_the_conversation() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say one")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not screen.query(Answer))
        await ask(pilot, screen, "roles")
        assert replies_of(screen) == ["user"]


async def test_new_in_the_middle_of_a_reply_does_not_mix_the_two() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        screen.query_one(Prompt).text = "count"
        await pilot.press("enter")
        await until(pilot, lambda: "0 1 2" in screen_text(pilot))
        await pilot.press("ctrl+n")
        await ask(pilot, screen, "say fresh")
        assert [message["content"] for message in screen.messages] == ["say fresh", "fresh"]


async def test_settings_reach_the_worker() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(pilot.app.screen, SamplingModal))
        modal = pilot.app.screen
        modal.query_one("#system", TextArea).text = "Be brief."
        modal.query_one("#sampling-temperature", Input).value = "hot"
        await pilot.press("f2")
        await until(pilot, lambda: "must be a number from 0 to 10, not 'hot'" in screen_text(pilot))
        modal.query_one("#sampling-temperature", Input).value = "0"
        modal.query_one("#sampling-seed", Input).value = "3"
        modal.query_one("#sampling-top_k", Input).value = "40"
        modal.query_one("#sampling-stop", Input).value = "END,\\n"
        await pilot.press("f2")
        await until(pilot, lambda: pilot.app.screen is screen)
        await ask(pilot, screen, "settings")
        expected = {"temperature": 0.0, "top_p": 0.95, "max_tokens": 512, "seed": 3, "top_k": 40, "stop": ["END", "\n"]}
        assert json.loads(replies_of(screen)[0]).items() >= expected.items()
        await ask(pilot, screen, "roles")
        assert replies_of(screen)[1] == "system user assistant user"


async def test_a_failed_question_says_why_and_comes_back() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        screen.query_one(Prompt).text = "fail please"
        await pilot.press("enter")
        await until(pilot, lambda: "The conversation [/x] does not fit." in screen_text(pilot))
        assert screen.query_one(Prompt).text == "fail please"
        assert "✗ " in screen_text(pilot)
        assert screen.messages == []
        await ask(pilot, screen, "say better")
        assert replies_of(screen) == ["better"]


async def test_a_model_that_does_not_load_is_said_in_place() -> None:
    screen = chat_of("broken")
    async with staged(screen, (80, 24)) as pilot:
        await until(pilot, lambda: "There is no model '/models/Tiny-AWQ'." in screen_text(pilot))
        await pilot.press(*"hello", "enter")
        await until(pilot, lambda: "not running" in screen_text(pilot))
        assert screen.query_one(Prompt).text == "hello"


async def test_a_crash_keeps_the_question_and_can_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = chat_of("crash")
    async with staged(screen) as pilot:
        screen.query_one(Prompt).text = "say hi"
        await pilot.press("enter")
        await until(pilot, lambda: "ended with exit code 7" in screen_text(pilot))
        assert "the sky fell [/down]" in screen_text(pilot)
        assert screen.query_one(Prompt).text == "say hi"
        monkeypatch.setattr(
            "awq_tui.widgets.chat_side.ChatClient",
            lambda model, **_: ChatClient(model, [sys.executable, str(FAKE), "normal"]),
        )
        await pilot.press("ctrl+r")
        await until(pilot, lambda: screen.ready is not None)
        await pilot.press("enter")
        await until(pilot, lambda: replies_of(screen) == ["hi"])


async def test_keys_and_values_in_bytes_load_the_model_anew_and_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def client(model: str, *, kv_cache: str) -> ChatClient:
        asked.append(kv_cache)
        return ChatClient(model, [sys.executable, str(FAKE), "normal"])

    screen = chat_of()
    async with staged(screen, (80, 24)) as pilot:
        await ask(pilot, screen, "say hi")
        monkeypatch.setattr("awq_tui.widgets.chat_side.ChatClient", client)
        await pilot.press("f2")
        await until(pilot, lambda: isinstance(pilot.app.screen, SamplingModal))
        pilot.app.screen.query_one(Choice).focus()
        await pilot.press("right", "f2")
        await until(pilot, lambda: asked == ["int8"] and screen.ready is not None)
        await until(pilot, lambda: "stay in floats: only our own decoder" in screen_text(pilot))
        await ask(pilot, screen, "say ho")
        assert replies_of(screen) == ["hi", "ho"]
    assert load_settings().kv_cache == "int8"


async def test_a_model_without_a_template_is_announced() -> None:
    screen = chat_of("plain")
    async with staged(screen, (80, 24)) as pilot:
        await until(pilot, lambda: "no chat template" in screen_text(pilot))


async def test_replies_are_harmless() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say a [bold]b[/bold] [/x] \x1b[31mred \u202egnorw <b>c</b>")
        await until(pilot, lambda: "<b>c</b>" in screen_text(pilot))
        text = screen_text(pilot)
        assert "[bold]b[/bold] [/x] ␛[31mred \ufffdgnorw" in text
        assert "\x1b" not in text


async def test_the_view_follows_until_the_person_scrolls_up() -> None:
    screen = chat_of()
    async with staged(screen, (80, 24)) as pilot:
        await ask(pilot, screen, "say " + "\n\n".join(f"line {number}" for number in range(60)))
        log = screen.query_one(ChatLog)
        await until(pilot, lambda: log.max_scroll_y > 20 and log.scroll_y == log.max_scroll_y)
        screen.query_one(Prompt).text = "count"
        await pilot.press("enter")
        await until(pilot, lambda: "0 1 2" in screen_text(pilot))
        await pilot.press("pageup")
        place, end = log.scroll_y, log.max_scroll_y
        assert place < end
        await until(pilot, lambda: log.max_scroll_y > end + 1)
        assert (log.scroll_y, log.follows) == (place, False)
        for _ in range(5):
            await pilot.press("pagedown")
        await until(pilot, lambda: log.follows and log.scroll_y == log.max_scroll_y)
        end = log.max_scroll_y
        await until(pilot, lambda: log.max_scroll_y > end and log.scroll_y == log.max_scroll_y)


async def test_a_thought_is_folded_and_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say <think>Hm, [/two].</think>\n\nIt is **two**.")
        assert "▸ thought · 2 words · f3" in screen_text(pilot)
        assert "Hm, [/two]" not in screen_text(pilot).split("▸")[1]
        await pilot.press("f3")
        await until(pilot, lambda: "Hm, [/two]." in screen_text(pilot).split("▾ thought")[-1])
        await ask(pilot, screen, "roles")
        assert screen.messages[1]["content"] == "It is **two**."


async def test_a_thought_without_an_opening_tag_leaves_the_answer() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say Secretly.\n</think>\n\nLoudly.")
        await until(pilot, lambda: "Secretly" not in screen_text(pilot).split("▌ say")[1].split("</think>")[1])
        assert screen.messages[1]["content"] == "Loudly."


async def test_editing_asks_anew_and_keeps_what_came_before() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say one")
        await ask(pilot, screen, "say two")
        first = screen.chat.id
        await pilot.press("f5")
        assert screen.query_one(Prompt).text == "say two"
        await pilot.press("f5")
        await until(pilot, lambda: "editing question 1 of 2" in screen_text(pilot))
        assert screen.query_one(Prompt).text == "say one"
        await pilot.press(*"!", "enter")
        await until(pilot, lambda: replies_of(screen) == ["one!"])
        await until(pilot, lambda: "two" not in screen_text(pilot) and len(screen.query(Answer)) == 1)
        assert screen.chat.id != first
        await until(pilot, lambda: {chat.title for chat in list_chats()} == {"say one", "say one!"})


async def test_escape_leaves_the_editing_first() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say one")
        await pilot.press("f5", "escape")
        await until(pilot, lambda: screen.query_one(Prompt).text == "" and screen.editing is None)
        assert replies_of(screen) == ["one"]


async def test_conversations_are_kept_found_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say apples")
        await pilot.press("ctrl+n")
        await ask(pilot, screen, "say pears")
        await until(pilot, lambda: len(list_chats()) == 2)
        await pilot.press("f8")
        await until(pilot, lambda: "2 conversations" in screen_text(pilot))
        await pilot.press("slash", *"apple")
        await until(pilot, lambda: "1 conversation" in screen_text(pilot) and "pears" not in modal_text(pilot))
        await pilot.press("enter", "e")
        await until(pilot, lambda: list(Path.cwd().glob("awq-chat-*-say-apples.md")))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is screen and replies_of(screen) == ["apples"])
        assert "31.5 tok/s" in screen_text(pilot)
        await ask(pilot, screen, "roles")
        assert replies_of(screen) == ["apples", "user assistant user"]
        assert len(list_chats()) == 2


async def test_a_conversation_can_be_deleted() -> None:
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say [/x]")
        await pilot.press("f8")
        await until(pilot, lambda: "say [/x]" in modal_text(pilot))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("y")
        await until(pilot, lambda: list_chats() == [] and "No conversation yet" in screen_text(pilot))


async def test_nothing_is_kept_where_the_person_does_not_want_it() -> None:
    configure("save_chats = false")
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say secret")
        await pilot.pause(0.1)
        assert list_chats() == []


async def test_two_models_answer_side_by_side_and_what_differs_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "awq_tui.widgets.chat_side.ChatClient",
        lambda model, **_: ChatClient(model, [sys.executable, str(FAKE), "other"]),
    )
    screen = chat_of()
    async with staged(screen) as pilot:
        await ask(pilot, screen, "say before")
        await screen._put_beside("/models/original")
        await until(pilot, lambda: screen.sides[1].ready is not None)
        assert screen_text(pilot).count("▌ say before") == 2
        screen.query_one(Prompt).text = "say the same words"
        await pilot.press("enter")
        await until(pilot, lambda: "% of the words shared" in screen_text(pilot))
        assert [reply.text for reply in screen.chat.turns[1].replies if reply] == ["the same words", "the same WORDS"]
        await until(pilot, lambda: "A: KL 0.1" in screen_text(pilot) and "same first choice 67 %" in screen_text(pilot))
        assert "at 'words'" in screen_text(pilot)
        assert len(screen.query("Answer.-marked")) == 2
        screen.query_one(Prompt).text = "settings"
        await pilot.press("enter")
        await until(pilot, lambda: not screen.busy and len(screen.chat.turns) == 3)
        seeds = [json.loads(reply.text.lower())["seed"] for reply in screen.chat.turns[2].replies if reply]
        assert seeds[0] == seeds[1] is not None
        await pilot.press("f7")
        await until(pilot, lambda: len(screen.sides) == 1 and not screen.query("Answer.-marked"))


async def test_one_of_two_models_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "awq_tui.widgets.chat_side.ChatClient",
        lambda model, **_: ChatClient(model, [sys.executable, str(FAKE), "broken"]),
    )
    screen = chat_of()
    async with staged(screen, (80, 24)) as pilot:
        await screen._put_beside("/models/original")
        await until(pilot, lambda: "There is no model" in screen_text(pilot))
        screen.query_one(Prompt).text = "say alone"
        await pilot.press("enter")
        await until(pilot, lambda: replies_of(screen) == ["alone"])
        assert screen.chat.turns[0].replies[1] is None


async def test_the_original_is_offered_first(tmp_path: Path) -> None:
    original, output = tmp_path / "here" / "tiny", tmp_path / "here" / "tiny-AWQ"
    model_folder(original)
    model_folder(output)
    (output / REPORT_NAME).write_text(json.dumps({"config": {"model": str(original)}, "layers": []}))
    found = comparison_entries(str(output), (), ())
    assert (found[0].model, found[0].name) == (str(original), "tiny (original)")
    assert str(output) not in {entry.model for entry in found}
    assert original_of("org/name") is None


def modal_text(pilot) -> str:
    """What the topmost table shows."""
    table = pilot.app.screen.query_one(ChatTable)
    return "\n".join(str(cell) for row in range(table.row_count) for cell in table.get_row_at(row))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("temperature", "-1", "temperature must be a number from 0 to 10"),
        ("top_p", "0", "top-p must be a number from 0.01 to 1"),
        ("max_tokens", "1.5", "max tokens must be a whole number"),
        ("seed", "x", "seed must be a whole number"),
        ("top_k", "-1", "top-k must be a whole number from 0"),
        ("min_p", "2", "min-p must be a number from 0 to 1"),
        ("repetition_penalty", "0", "repetition penalty must be a number from 0.1"),
        ("stop", ",".join("abcdefghijklmnopq"), "There can be 16 texts to stop at, not 17"),
    ],
)
def test_settings_that_cannot_be_used_name_what_could(field: str, value: str, sentence: str) -> None:
    sampling = Sampling(9, 1.0, 1.0, None, 5, 0.1, 1.2, ("END", "\n"))
    texts = {name: as_text(value) for name, value in dataclasses.asdict(sampling).items()}
    assert read_sampling(texts) == sampling
    with pytest.raises(ValueError, match=sentence):
        read_sampling({**texts, field: value})
