"""Conversations on disk: what is sent, kept, found again and written out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from awq_engine.errors import BadInputError
from awq_engine.sampling_settings import Sampling
from awq_tui.chats import (
    Chat,
    Reply,
    as_markdown,
    chats_dir,
    delete_chat,
    export_chat,
    list_chats,
    load_chat,
    save_chat,
)

NOW = 1_700_000_000.0


def conversation(*turns: tuple[str, str], models: tuple[str, ...] = ("/models/tiny",)) -> Chat:
    chat = Chat(models, sampling=Sampling(temperature=0.0, seed=3))
    for number, (question, answer) in enumerate(turns):
        chat = chat.asking(question, NOW + number)
        for side in range(len(models)):
            chat = chat.answered(side, Reply(answer, {"new_tokens": 7, "tokens_per_second": 31.5}), NOW + number)
    return chat


def test_thoughts_are_not_sent_back() -> None:
    chat = conversation(("Two?", "<think>hm</think>\nYes.")).asking("Sure?", NOW)
    assert [message["content"] for message in chat.messages(0)] == ["Two?", "Yes.", "Sure?"]
    assert replace(chat, system="Be brief.").messages(0)[0] == {"role": "system", "content": "Be brief."}


def test_a_model_is_not_sent_turns_it_missed() -> None:
    chat = conversation(("One?", "1"), models=("a", "b")).with_models(("a", "c")).asking("Two?", NOW)
    assert [message["content"] for message in chat.messages(0)] == ["One?", "1", "Two?"]
    assert [message["content"] for message in chat.messages(1)] == ["Two?"]


def test_a_stored_conversation_comes_back_as_it_was() -> None:
    chat = conversation(("Two?\nlines", "<think>hm</think>\nYes."))
    save_chat(chat)
    (path,) = chats_dir().glob("*.json")
    assert load_chat(path) == chat
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_editing_the_last_question_replaces_it_and_an_earlier_one_keeps_the_rest() -> None:
    chat = conversation(("One?", "1"), ("Two?", "2"), ("Three?", "3"))
    assert (chat.before(2).id, len(chat.before(2).turns)) == (chat.id, 2)
    assert (chat.before(0).id, chat.before(0).turns) == ("", ())
    assert chat.before(0).asking("Anew?", NOW).id not in ("", chat.id)


def test_conversations_are_found_by_words_the_latest_first() -> None:
    chats = [conversation((f"About {animal}?", "Furry."), models=(f"/m/{animal}",)) for animal in ("cats", "dogs")]
    for number, chat in enumerate(chats):
        save_chat(replace(chat, id=f"chat-{number}", updated=NOW + number))
    assert [chat.title for chat in list_chats()] == ["About dogs?", "About cats?"]
    assert [chat.title for chat in list_chats("FURRY cats")] == ["About cats?"]
    delete_chat(list_chats("cats")[0])
    assert [chat.title for chat in list_chats()] == ["About dogs?"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"models": 3}', "null"])
def test_damaged_files_are_left_out_and_named(text: str) -> None:
    save_chat(conversation(("One?", "1")))
    bad = chats_dir() / "bad.json"
    bad.write_text(text)
    assert len(list_chats()) == 1
    with pytest.raises(BadInputError, match=r"bad\.json"):
        load_chat(bad)


def test_an_export_holds_models_settings_thoughts_and_figures(tmp_path: Path) -> None:
    chat = conversation(("What is 1+1?", "<think>easy</think>\nTwo."))
    markdown, data = export_chat(chat, tmp_path)
    text = markdown.read_text()
    assert markdown.name.endswith("-what-is-1-1.md")
    assert text.startswith('---\nmodels: ["/models/tiny"]\n')
    assert "temperature: 0.0\n" in text
    assert "## You\n\nWhat is 1+1?\n\n## tiny\n\n> easy\n\nTwo.\n\n*new tokens 7, tokens per second 31.5*" in text
    assert json.loads(data.read_text())["turns"][0]["replies"][0]["text"] == "<think>easy</think>\nTwo."


def test_titles_and_names_are_harmless() -> None:
    chat = conversation(("\x1b]0;owned\x07" + "x" * 100, "1"), models=("/m/evil\x1b[2J",))
    assert "\x1b" not in chat.title + as_markdown(chat).split("## You")[0]
    assert len(chat.title) <= 60
