"""Talking to one model: does it still talk sense?

The model lives in a worker process that ends with this screen. Replies stream into the log; the conversation, a plain
list of messages, is what is sent, so a stopped reply stays in it and a failed question leaves it and comes back to the
prompt.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from awq_engine import format as fmt
from awq_engine.sanitize import one_line, plain
from awq_tui.chat_client import ChatClient, Done, Failed, Loading, Piece, Ready, Reply
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.sampling import ChatSettings, SamplingModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.chat_log import ChatLog
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.message import Answer, Notice, Question
from awq_tui.widgets.prompt import Prompt

NO_TEMPLATE = "This model has no chat template: it continues your text instead of answering it."
ENDINGS = {"length": "cut at max tokens", "context": "the context is full", "cancelled": "stopped"}
"""What is said about a reply that did not end by itself, by finish reason."""


class ChatScreen(SectionScreen):
    """Loads `model` (a folder, a run id or a Hub id) and talks to it."""

    CSS_PATH = "chat.tcss"
    HELP = (
        "A conversation with one model, on this machine. Under every reply: tokens, tokens per second, the time to "
        "the first token, and how much of the context is used. The model is unloaded when you leave this screen."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the reply."),
        Binding("escape", "leave", "Leave", id="chat.leave", tooltip="Leave the chat, once no reply is coming."),
        Binding("ctrl+r", "again", "Again", id="chat.again", tooltip="Ask for another reply, or restart the model."),
        Binding("ctrl+n", "new", "New", id="chat.new", tooltip="Forget this conversation and start another."),
        Binding("f2", "settings", "Sampling", id="chat.settings", tooltip="System prompt, temperature, length, seed."),
        Binding("f4", "copy", "Copy", id="chat.copy", tooltip="Copy the last reply (OSC 52)."),
        Binding("pageup", "scroll(-1)", "Scroll", show=False, priority=True, id="chat.up"),
        Binding("pagedown", "scroll(1)", "Scroll", show=False, priority=True, id="chat.down"),
    ]

    def __init__(self, model: str, client: ChatClient | None = None) -> None:
        super().__init__()
        self.model = model
        self.messages: list[dict[str, str]] = []
        """The conversation without the system prompt."""
        self.settings = ChatSettings()
        self.ready: Ready | None = None
        self._client = client or ChatClient(model)
        self._pending: dict[str, Answer] = {}
        """Replies that are asked for and not complete, by request."""
        self._failed = False
        self._last_answer: Answer | None = None
        """The newest complete reply: what asking again replaces."""

    def body(self) -> ComposeResult:
        yield Static(id="chat-head", markup=False)
        yield ChatLog(id="chat-log")
        yield Prompt(id="chat-prompt")

    def on_mount(self) -> None:
        self.query_one(Prompt).focus()
        self.query_one(ChatLog).anchor()
        self._start(self._client)

    async def on_unmount(self) -> None:
        await self._client.close()

    @property
    def busy(self) -> bool:
        """Whether a reply is on its way."""
        return bool(self._pending)

    def _start(self, client: ChatClient) -> None:
        self._client, self._failed, self.ready = client, False, None
        self._show_head(f"loading{glyphs().ellipsis}")
        self.run_worker(self._talk(client), group="chat", exclusive=True, exit_on_error=False)

    async def _talk(self, client: ChatClient) -> None:
        await client.start()
        async for reply in client.replies():
            await self._take(reply)

    # what the worker says

    async def _take(self, reply: Reply) -> None:
        if isinstance(reply, Piece):
            if answer := self._pending.get(reply.id):
                answer.feed(reply.text)
            return
        if isinstance(reply, Loading):
            total = f" of {fmt.size(reply.total)}" if reply.total else ""
            self._show_head(f"{one_line(reply.message)} {fmt.size(reply.done)}{total}")
        elif isinstance(reply, Ready):
            self._loaded(reply)
        elif isinstance(reply, Failed):
            await self._fail(reply)
        elif answer := self._pending.pop(reply.id, None):
            await self._complete(answer, reply)
        self.refresh_bindings()

    def _loaded(self, ready: Ready) -> None:
        self.ready = ready
        chars = glyphs()
        bits, context = f"{ready.bits_per_weight:.1f} bits", f"context {ready.context_length or 'unknown'}"
        self._show_head(f" {chars.dot} ".join([bits, context, one_line(f"{ready.backend}: {ready.reason}")]))
        for text in ([] if ready.has_chat_template else [NO_TEMPLATE]) + [plain(note) for note in ready.notes]:
            self._add(Notice(text))
        for answer in self._pending.values():
            answer.say(f"reading{chars.ellipsis}")

    async def _complete(self, answer: Answer, done: Done) -> None:
        self.messages.append({"role": "assistant", "content": answer.text})
        self._last_answer = answer
        await answer.finish(figures_line(done))

    async def _fail(self, failed: Failed) -> None:
        """Say it where the reply would have stood, and give the question back."""
        requests = [failed.id] if failed.id in self._pending else list(self._pending) if failed.fatal else []
        for request in requests:
            await self._pending.pop(request).fail(f"{glyphs().failed} {failed.message}")
            self._take_question_back()
        if not requests:
            self._add(Notice(f"{glyphs().failed} {failed.message}", error=True))
        if failed.fatal:
            self._failed = True
            self._show_head("not running")
            self._add(Notice("ctrl+r starts the model again."))

    def _take_question_back(self) -> None:
        prompt = self.query_one(Prompt)
        question = self.messages.pop()["content"] if self.messages else ""
        if not prompt.text.strip():
            prompt.text = question
            prompt.move_cursor(prompt.document.end)

    # what the person does

    @on(Prompt.Submitted)
    async def _send(self, event: Prompt.Submitted) -> None:
        if self.busy or self._failed:
            reason = "The model is not running; ctrl+r starts it again." if self._failed else "Wait, or stop with esc."
            self.notify(reason, severity="warning", timeout=3)
            return
        self.query_one(Prompt).text = ""
        self.messages.append({"role": "user", "content": event.text})
        self._add(Question(event.text))
        await self._ask()

    async def _ask(self) -> None:
        answer = Answer()
        await self.query_one(ChatLog).mount(answer)
        self.query_one(ChatLog).anchor()
        answer.say(f"{'reading' if self.ready else 'waiting for the model'}{glyphs().ellipsis}")
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        self._pending[await self._client.ask(system + self.messages, self.settings.sampling)] = answer
        self.refresh_bindings()

    async def action_stop(self) -> None:
        await self._client.cancel()

    async def action_leave(self) -> None:
        if self.messages or self.query_one(Prompt).text.strip():
            self.app.push_screen(ConfirmModal("Leave this chat? The conversation is not kept.", "Leave"), self._leave)
        else:
            await self.awq.action_back()

    async def _leave(self, yes: bool | None) -> None:
        if yes:
            await self.awq.action_back()

    async def action_again(self) -> None:
        if self._failed:
            await self._client.close()
            self._start(ChatClient(self.model))
        elif not self.busy and self.messages:
            if self.messages[-1]["role"] == "assistant":
                self.messages.pop()
                if self._last_answer is not None:
                    await self._last_answer.remove()
            await self._ask()

    async def action_new(self) -> None:
        if self.busy:
            await self._client.cancel()
        self._pending.clear()
        self.messages.clear()
        await self.query_one(ChatLog).remove_children()
        if self.ready and not self.ready.has_chat_template:
            self._add(Notice(NO_TEMPLATE))
        self.query_one(Prompt).focus()

    def action_settings(self) -> None:
        self.app.push_screen(SamplingModal(self.settings), self._use)

    def _use(self, settings: ChatSettings | None) -> None:
        self.settings = settings or self.settings

    def action_copy(self) -> None:
        replies = [message["content"] for message in self.messages if message["role"] == "assistant"]
        if replies:
            self.app.copy_to_clipboard(replies[-1])
            self.notify("The last reply was copied.", timeout=2)

    def action_scroll(self, direction: int) -> None:
        log = self.query_one(ChatLog)
        log.scroll_relative(y=direction * max(1, log.size.height - 2), animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the keys that make sense now are in the footer."""
        allowed = {
            "stop": self.busy,
            "leave": not self.busy,
            "again": self._failed or (bool(self.messages) and not self.busy),
            "copy": any(message["role"] == "assistant" for message in self.messages),
        }
        return allowed.get(action, True)

    # drawing

    def _show_head(self, state: str) -> None:
        model = self.ready.model if self.ready else self.model
        name = one_line(model.rstrip("/").rsplit("/", 1)[-1] or model)
        self.query_one("#chat-head", Static).update(Content.assemble((name, "bold"), f"  {state}"))

    def _add(self, widget: Question | Notice) -> None:
        log = self.query_one(ChatLog)
        log.mount(widget)
        log.anchor()


def figures_line(done: Done) -> str:
    """`142 tokens · 31.5 tok/s · first 0.38 s · context 612/32768`."""
    context = f"{done.context_used}/{done.context_length}" if done.context_length else str(done.context_used)
    parts = [
        f"{done.new_tokens} tokens",
        f"{done.tokens_per_second:.1f} tok/s",
        f"first {done.seconds_to_first_token:.2f} s",
        f"context {context}",
        *([f"seed {done.seed}"] if done.seed is not None else []),
        *([ENDINGS[done.finish_reason]] if done.finish_reason in ENDINGS else []),
    ]
    return f" {glyphs().dot} ".join(parts)
