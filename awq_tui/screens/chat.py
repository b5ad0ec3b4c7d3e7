"""Talking to one model, or to two side by side: does it still talk sense, and does it say what the original says?

The conversation (`chats.Chat`) is a value that is replaced at every turn and written to disk after it, so an end of
whatever kind costs at most the reply that was being made. Each side holds one model in a process of its own; a stopped
reply stays in the conversation, and a question that nobody could answer leaves it and comes back to the prompt.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Static

from awq_tui.answer_comparison import AnswerComparison
from awq_tui.background import in_thread
from awq_tui.chat_client import ChatClient, Ready
from awq_tui.chats import Chat, export_chat, model_name, save_chat
from awq_tui.places import Place
from awq_tui.screens.chats import ChatsModal
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.pick import PickModal, comparison_entries
from awq_tui.screens.sampling import ChatSettings, SamplingModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.chat_side import ChatSide
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.prompt import Prompt
from awq_tui.widgets.thought import Thought


class ChatScreen(SectionScreen):
    """Loads `model` (a folder, a run id or a Hub id) and talks to it; `chat` goes on with a stored conversation."""

    CSS_PATH = "chat.tcss"
    HELP = (
        "A conversation with one model, on this machine, kept in a private file. Under every reply: tokens, tokens per "
        "second, the time to the first token, and how much of the context is used. A thought is folded to one line. "
        "A/B puts a second model beside the first, usually the original beside its quantization: both get the same "
        "questions and the same seed. In the first answer those tokens are marked where the second model would go on "
        "differently (underlined: where it is much less sure), with their KL divergence; in the second, other words. "
        "Models are unloaded when you leave."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the reply."),
        Binding(
            "escape", "stop_editing", "Keep as it was", id="chat.stop_editing", tooltip="Edit no earlier question."
        ),
        Binding("escape", "leave", "Leave", id="chat.leave", tooltip="Leave the chat, once no reply is coming."),
        Binding("ctrl+r", "again", "Again", id="chat.again", tooltip="Ask for another reply, or restart the model."),
        Binding("ctrl+n", "new", "New", id="chat.new", tooltip="Start another conversation; this one is kept."),
        Binding("f2", "settings", "Sampling", id="chat.settings", tooltip="System prompt, temperature, length, seed."),
        Binding("f3", "thoughts", "Thoughts", id="chat.thoughts", show=False,
                tooltip="Open or fold what the model thought."),
        Binding("f4", "copy", "Copy", id="chat.copy", tooltip="Copy the last reply (OSC 52)."),
        Binding("f5", "edit", "Edit", id="chat.edit", tooltip="Change the last question and ask anew; again: earlier."),
        Binding("f7", "compare", "A/B", id="chat.compare", tooltip="A second model beside this one, or one less."),
        Binding("f8", "chats", "Chats", id="chat.chats", tooltip="Earlier conversations: read, search, go on."),
        Binding("f9", "export", "Export", id="chat.export", show=False, tooltip="Write it as Markdown and JSON, here."),
        Binding("pageup", "scroll(-1)", "Scroll", show=False, priority=True, id="chat.up"),
        Binding("pagedown", "scroll(1)", "Scroll", show=False, priority=True, id="chat.down"),
    ]  # fmt: skip

    def __init__(self, model: str, client: ChatClient | None = None, chat: Chat | None = None) -> None:
        super().__init__()
        self.chat = chat or Chat((model,))
        self.editing: int | None = None
        """The turn whose question is in the prompt to be changed."""
        clients = (client, None)
        self.sides = [ChatSide(name, side, clients[side]) for side, name in enumerate(self.chat.models)]
        """One per model. Never queried for: a long conversation has thousands of widgets, and every key asks."""
        self._thoughts_open = False
        self._comparison = AnswerComparison(self.sides, self._note)
        self._saving = True
        """Until the disk refuses."""

    def place(self) -> Place:
        return {"screen": "chat", "model": self.model, "chat": self.chat.id if self.chat.turns else ""}

    def body(self) -> ComposeResult:
        for side in self.sides:
            side.kv_cache = self.awq.settings.kv_cache
        with Horizontal(id="chat-sides"):
            yield from self.sides
        yield Static(id="chat-note", classes="notice", markup=False)
        yield Prompt(id="chat-prompt")

    async def on_mount(self) -> None:
        self.query_one(Prompt).focus()
        if self.chat.turns:
            await self._draw_chat()
        self._note()

    @property
    def model(self) -> str:
        return self.chat.models[0]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation with the first model, without the system prompt."""
        return replace(self.chat, system="").messages(0)

    @property
    def ready(self) -> Ready | None:
        """What the first model said when it was loaded."""
        return self.sides[0].ready

    @property
    def busy(self) -> bool:
        """Whether a reply is on its way."""
        return any(side.busy for side in self.sides)

    # turns

    @on(Prompt.Submitted)
    async def _send(self, event: Prompt.Submitted) -> None:
        running = [side for side in self.sides if not side.failed]
        if self.busy or not running:
            reason = "Wait, or stop with esc." if self.busy else "The model is not running; ctrl+r starts it again."
            self.notify(reason, severity="warning", timeout=3)
            return
        self.query_one(Prompt).text = ""
        if self.editing is not None:
            await self._forget_from(self.editing)
        self.chat = self.chat.asking(event.text, time.time())
        await self._ask(event.text)

    async def _ask(self, question: str | None) -> None:
        """Put the last question to every model that runs."""
        chat = self._with_one_seed()
        for side in self.sides:
            if not side.failed:
                await side.ask(question, chat)
        self._note()

    def _with_one_seed(self) -> Chat:
        """Two models draw with the same seed, or their answers could not be compared."""
        sampling = self.chat.sampling
        if len(self.sides) == 1 or sampling.seed is not None:
            return self.chat
        return replace(self.chat, sampling=replace(sampling, seed=len(self.chat.turns)))

    @on(ChatSide.Answered)
    async def _answered(self, event: ChatSide.Answered) -> None:
        self.chat = self.chat.answered(event.side.index, event.reply, time.time())
        self._save()
        self._note()
        if len(self.sides) > 1 and not self.busy:
            self.run_worker(
                self._comparison.compare(self.chat), group="differences", exclusive=True, exit_on_error=False
            )

    @on(ChatSide.Refused)
    def _refused(self) -> None:
        """A question that no model answered comes back."""
        if self.busy or not self.chat.turns or any(self.chat.turns[-1].replies):
            return
        turn = self.chat.turns[-1]
        self.chat = replace(self.chat, turns=self.chat.turns[:-1])
        prompt = self.query_one(Prompt)
        if not prompt.text.strip():
            prompt.text = turn.question
            prompt.move_cursor(prompt.document.end)
        self._note()

    @on(ChatSide.WasScored)
    async def _scored(self, event: ChatSide.WasScored) -> None:
        await self._comparison.take_scores(event.side.index, event.scores)

    async def _forget_from(self, turn: int) -> None:
        """Drop a turn and all after it."""
        for side in self.sides:
            await side.forget_turns(len(self.chat.turns) - turn)
        self.chat, self.editing = self.chat.before(turn), None

    def _save(self) -> None:
        if self._saving and self.awq.preferences.save_chats:
            self.run_worker(self._write(self.chat), group="save", exit_on_error=False)

    async def _write(self, chat: Chat) -> None:
        try:
            await in_thread(save_chat, chat)
        except OSError as error:
            self._saving = False
            self.notify(f"This conversation cannot be kept: {error.strerror or error}.", severity="warning")

    # keys

    async def action_stop(self) -> None:
        for side in self.sides:
            await side.stop()

    async def action_leave(self) -> None:
        if self.query_one(Prompt).text.strip():
            question = "Leave this chat? What is in the prompt was not sent."
            self.app.push_screen(ConfirmModal(question, "Leave"), self._leave)
        else:
            await self.awq.action_back()

    async def _leave(self, yes: bool | None) -> None:
        if yes:
            await self.awq.action_back()

    async def action_again(self) -> None:
        gone = [side for side in self.sides if side.failed]
        for side in gone:
            await side.restart()
        if gone or self.busy or not self.chat.turns:
            return
        turn = self.chat.turns[-1]
        self.chat = replace(
            self.chat, turns=(*self.chat.turns[:-1], replace(turn, replies=(None,) * len(turn.replies)))
        )
        await self._ask(None)

    async def action_new(self) -> None:
        """This conversation is on disk already."""
        for side in self.sides:
            await side.clear()
        self.chat = replace(self.chat, id="", created=0.0, turns=())
        self.editing = None
        self.query_one(Prompt).focus()
        self._note()

    def action_edit(self) -> None:
        """The last question into the prompt; pressed again, the one before."""
        turns = self.chat.turns
        if self.busy or not turns:
            return
        self.editing = len(turns) - 1 if self.editing is None else max(0, self.editing - 1)
        prompt = self.query_one(Prompt)
        prompt.text = turns[self.editing].question
        prompt.move_cursor(prompt.document.end)
        prompt.focus()
        self._note()

    def action_stop_editing(self) -> None:
        self.editing = None
        self.query_one(Prompt).text = ""
        self._note()

    def action_settings(self) -> None:
        present = ChatSettings(self.chat.system, self.chat.sampling, self.awq.settings.kv_cache)
        self.app.push_screen(SamplingModal(present), self._use)

    async def _use(self, settings: ChatSettings | None) -> None:
        if settings is None:
            return
        self.chat = replace(self.chat, system=settings.system, sampling=settings.sampling)
        if settings.kv_cache != self.awq.settings.kv_cache:
            self.awq.update_settings(kv_cache=settings.kv_cache)
            await self._load_anew(settings.kv_cache)

    async def _load_anew(self, kv_cache: str) -> None:
        """What a process keeps keys and values in, it is told when it starts; a reply on its way is finished first."""
        for side in self.sides:
            side.kv_cache = kv_cache
        if self.busy:
            self.notify("Keys and values are kept so when the model is loaded the next time.")
            return
        for side in self.sides:
            await side.restart()

    def action_thoughts(self) -> None:
        self._thoughts_open = not self._thoughts_open
        for thought in self.query(Thought):
            thought.toggle(self._thoughts_open)

    def action_copy(self) -> None:
        replies = [message["content"] for message in self.messages if message["role"] == "assistant"]
        if replies:
            self.app.copy_to_clipboard(replies[-1])
            self.notify("The last reply was copied.", timeout=2)

    async def action_compare(self) -> None:
        """Put a second model beside the first, or take it away."""
        if len(self.sides) > 1:
            await self.sides.pop().remove()
            self.chat = self.chat.with_models(self.chat.models[:1])
            self.sides[0].unmark()
            self._note()
            return
        found = await in_thread(comparison_entries, self.model, self.awq.summaries, self.awq.settings.folders)
        self.app.push_screen(PickModal("Beside this model", found), self._put_beside)

    async def _put_beside(self, model: str | None) -> None:
        if model is None:
            return
        self.chat = self.chat.with_models((self.model, model))
        side = ChatSide(model, 1)
        side.kv_cache = self.awq.settings.kv_cache
        self.sides.append(side)
        await self.query_one("#chat-sides").mount(side)
        await side.show(self.chat)
        self._note()

    def action_chats(self) -> None:
        self.app.push_screen(ChatsModal(), self._open_chat)

    async def _open_chat(self, chat: Chat | None) -> None:
        """Go on with a stored conversation: here, when it is with the same models."""
        if chat is None:
            return
        if chat.models != self.chat.models:
            self.awq.open_chat(chat.models[0], chat)
            return
        self.chat, self.editing = chat, None
        await self._draw_chat()
        self._note()

    async def _draw_chat(self) -> None:
        for side in self.sides:
            await side.show(self.chat)

    async def action_export(self) -> None:
        try:
            files = await in_thread(export_chat, self.chat, Path.cwd())
        except OSError as error:
            message = f"{Path.cwd()} cannot be written to: {error.strerror or error}."
            self.awq.show_error("Nothing was exported", message)
        else:
            self.notify(f"{files[0]} and .json", title="Exported", timeout=8)

    def action_scroll(self, direction: int) -> None:
        for side in self.sides:
            log = side.log_view
            log.scroll_relative(y=direction * max(1, log.size.height - 2), animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the keys that make sense now are in the footer."""
        if not self.is_mounted:
            return True
        idle, turns = not self.busy, bool(self.chat.turns)
        allowed = {
            "stop": self.busy,
            "stop_editing": idle and self.editing is not None,
            "leave": idle and self.editing is None,
            "again": any(side.failed for side in self.sides) or (turns and idle),
            "edit": turns and idle,
            "copy": any(turn.replies[0] for turn in self.chat.turns),
            "export": turns and idle,
            "compare": idle,
            "chats": idle,
        }
        return allowed.get(action, True)

    @on(ChatSide.Changed)
    def _keys_changed(self) -> None:
        self.refresh_bindings()

    def _note(self, comparison: str = "") -> None:
        """The line above the prompt: what is being edited, or how two answers compare."""
        text = comparison
        if self.editing is not None:
            later = len(self.chat.turns) - self.editing - 1
            kept = "; the conversation as it is stays among the chats" if later else ""
            text = f"editing question {self.editing + 1} of {len(self.chat.turns)}: enter asks it anew{kept}"
        elif not text and len(self.chat.models) > 1:
            text = f" {glyphs().dot} ".join(
                f"{letter} {model_name(m)}" for letter, m in zip("AB", self.chat.models, strict=False)
            )
        note = self.query_one("#chat-note", Static)
        note.update(text)
        note.display = bool(text)
        self.refresh_bindings()
