"""One model and its column of the conversation: its process, a line about its state, and its replies.

The screen holds the conversation and tells a side what to ask; what comes of it is posted back. With two sides the same
question goes to two models at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from awq_engine import format as fmt
from awq_engine.sanitize import one_line, plain
from awq_engine.token_scores import TokenScore
from awq_tui.chat_client import ChatClient, Done, Failed, Loading, Piece, Reading, Ready, Scored, Scores
from awq_tui.chat_client import Reply as WorkerReply
from awq_tui.chats import FIGURES, Chat, Reply, model_name
from awq_tui.differences import Span
from awq_tui.widgets.chat_log import ChatLog
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.message import Answer, Notice, Question

NO_TEMPLATE = "This model has no chat template: it continues your text instead of answering it."
IN_FLOATS = "Keys and values stay in floats: only our own decoder keeps them in bytes."
ENDINGS = {"length": "cut at max tokens", "context": "the context is full", "cancelled": "stopped"}
"""What is said about a reply that did not end by itself, by finish reason."""


class ChatSide(Vertical):
    """Loads `model` when it is mounted and unloads it when it goes."""

    DEFAULT_CSS = """
    ChatSide { width: 1fr; }
    ChatSide > .head { height: auto; max-height: 2; padding: 0 1; }
    """

    class Changed(Message):
        """The model is ready, or gone: other keys make sense."""

    class Answered(Message):
        """A reply is complete."""

        def __init__(self, side: ChatSide, reply: Reply) -> None:
            self.side, self.reply = side, reply
            super().__init__()

    class WasScored(Message):
        """The model thinks this of each token of the answer it was asked about."""

        def __init__(self, side: ChatSide, scores: list[TokenScore]) -> None:
            self.side, self.scores = side, scores
            super().__init__()

    class Refused(Message):
        """The last question will not be answered; why stands in the column."""

        def __init__(self, side: ChatSide) -> None:
            self.side = side
            super().__init__()

    def __init__(self, model: str, index: int, client: ChatClient | None = None) -> None:
        super().__init__(classes="-second" if index else None)
        self.model = model
        self.index = index
        self.ready: Ready | None = None
        self.failed = False
        """The process is gone; `restart` starts another."""
        self.kv_cache = "float"
        """What the model's process is asked to keep keys and values in."""
        self._client = client
        self._request: str | None = None
        self._scoring: str | None = None
        self._scores: list[TokenScore] = []
        self._answer: Answer | None = None
        """The newest reply, complete or not."""

    def compose(self) -> ComposeResult:
        yield Static(classes="head", markup=False)
        yield ChatLog()

    def on_mount(self) -> None:
        self.log_view.anchor()
        self._start(self._client or self._new_client())

    async def on_unmount(self) -> None:
        if self._client is not None:
            await self._client.close()

    @property
    def client(self) -> ChatClient:
        """The model's process."""
        assert self._client is not None
        return self._client

    def _new_client(self) -> ChatClient:
        return ChatClient(self.model, kv_cache=self.kv_cache)

    @property
    def log_view(self) -> ChatLog:
        return self.query_one(ChatLog)

    @property
    def busy(self) -> bool:
        """Whether a reply is on its way."""
        return self._request is not None

    async def restart(self) -> None:
        """Start the model's process anew."""
        await self.client.close()
        self._start(self._new_client())

    def _start(self, client: ChatClient) -> None:
        self._client, self.failed, self.ready = client, False, None
        self._show_head(f"loading{glyphs().ellipsis}")
        self.run_worker(self._talk(client), group="chat", exclusive=True, exit_on_error=False)

    async def _talk(self, client: ChatClient) -> None:
        await client.start()
        async for reply in client.replies():
            await self._take(reply)
            await asyncio.sleep(
                0
            )  # lines that wait already do not suspend this loop, and the keyboard is to have its turn

    # what the screen asks for

    async def show(self, chat: Chat) -> None:
        """Draw a stored conversation in the place of what is there."""
        await self.clear()
        for turn in chat.turns:
            reply = turn.replies[self.index]
            await self._mount_question(turn.question)
            answer = Answer()
            await self.log_view.mount(answer)
            answer.feed(reply.text if reply else "")
            answer.finish(figures_line(reply.figures, None) if reply else "no reply")
        self.log_view.anchor()

    async def ask(self, question: str | None, chat: Chat) -> None:
        """Put the conversation's last question to the model; without a `question` to draw, the last reply is redone."""
        if question is None and self._answer is not None:
            await self._answer.remove()
        if question is not None:
            await self._mount_question(question)
        answer = self._answer = Answer()
        await self.log_view.mount(answer)
        self.log_view.anchor()
        answer.say(f"{'reading' if self.ready else 'waiting for the model'}{glyphs().ellipsis}")
        if self._scoring is not None:
            self._scoring = None
            await self.client.cancel()
        self._request = ""  # busy from here on; the id comes with the next await
        self._request = await self.client.ask(chat.messages(self.index), chat.sampling)

    async def stop(self) -> None:
        await self.client.cancel()

    async def forget_turns(self, number: int) -> None:
        """Take the last `number` turns off the column."""
        drawn = [child for child in self.log_view.children if isinstance(child, Question)]
        if 0 < number <= len(drawn):
            children = list(self.log_view.children)
            await self.log_view.remove_children(children[children.index(drawn[-number]) :])
        self._answer = None

    async def clear(self) -> None:
        """An empty column; what still comes for an earlier question is ignored."""
        if self.busy:
            await self.client.cancel()
        self._request = self._answer = None
        await self.log_view.remove_children()
        if self.ready and not self.ready.has_chat_template:
            self._add(Notice(NO_TEMPLATE))

    def mark(self, spans: tuple[Span, ...]) -> None:
        """Mark in the last answer what differs from the other side's."""
        if self._answer is not None:
            self._answer.mark(spans)

    def unmark(self) -> None:
        """Every answer as it was before the comparison."""
        for answer in self.query(Answer):
            answer.mark(())

    async def score(self, chat: Chat, answer: str) -> None:
        """Ask what the model thinks of each token of an `answer` to the last question; `WasScored` brings it."""
        self._scores = []
        messages = chat.messages(self.index)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        self._scoring = await self.client.score(messages, answer)

    # what the process says

    async def _take(self, reply: WorkerReply) -> None:
        if isinstance(reply, Piece):
            if reply.id == self._request and self._answer:
                if not self._answer.text:
                    self._answer.say(f"writing{glyphs().ellipsis}")
                self._answer.feed(reply.text)
        elif isinstance(reply, Reading):
            if reply.id == self._request and self._answer and reply.total:
                self._answer.say(f"reading {100 * reply.done // reply.total} %")
        elif isinstance(reply, Scores | Scored):
            self._take_scores(reply)
        elif isinstance(reply, Loading):
            total = f" of {fmt.size(reply.total)}" if reply.total else ""
            self._show_head(f"{one_line(reply.message)} {fmt.size(reply.done)}{total}")
        elif isinstance(reply, Ready):
            self._loaded(reply)
        elif isinstance(reply, Failed):
            await self._fail(reply)
        elif reply.id == self._request and self._answer:
            await self._complete(self._answer, reply)

    def _take_scores(self, reply: Scores | Scored) -> None:
        if reply.id != self._scoring:
            return
        if isinstance(reply, Scores):
            self._scores += reply.tokens
            return
        self._scoring = None
        if reply.complete:
            self.post_message(self.WasScored(self, self._scores))

    def _loaded(self, ready: Ready) -> None:
        self.ready = ready
        chars = glyphs()
        bits, context = f"{ready.bits_per_weight:.1f} bits", f"context {ready.context_length or 'unknown'}"
        ways = [one_line(f"{ready.backend}: {ready.reason}"), *([one_line(ready.decoding)] if ready.decoding else [])]
        kept = ["keys and values in bytes"] if ready.kv_cache == "int8" else []
        self._show_head(f" {chars.dot} ".join([bits, context, *kept, *ways]))
        said = [] if ready.has_chat_template else [NO_TEMPLATE]
        said += [IN_FLOATS] if self.kv_cache != ready.kv_cache else []
        for text in (*said, *map(plain, ready.notes)):
            self._add(Notice(text))
        if self.busy and self._answer:
            self._answer.say(f"reading{chars.ellipsis}")
        self.post_message(self.Changed())

    async def _complete(self, answer: Answer, done: Done) -> None:
        self._request = None
        figures = {name: value for name in FIGURES if (value := getattr(done, name)) is not None}
        answer.finish(figures_line(dataclasses.asdict(done), done.context_length))
        self.post_message(self.Answered(self, Reply(answer.text, figures)))

    async def _fail(self, failed: Failed) -> None:
        """Say it where the reply would have stood."""
        message = f"{glyphs().failed} {failed.message}"
        if self.busy and (failed.fatal or failed.id == self._request) and self._answer:
            self._request = None
            self._answer.fail(message)
            self.post_message(self.Refused(self))
        elif failed.fatal or failed.id is None:
            self._add(Notice(message, error=True))
        if failed.fatal:
            self.failed = True
            self._show_head("not running")
            self._add(Notice("ctrl+r starts the model again."))
        self.post_message(self.Changed())

    # drawing

    async def _mount_question(self, question: str) -> None:
        await self.log_view.mount(Question(question))

    def _show_head(self, state: str) -> None:
        name = model_name(self.ready.model if self.ready else self.model)
        self.query_one(".head", Static).update(Content.assemble((name, "bold"), f"  {state}"))

    def _add(self, widget: Notice) -> None:
        self.log_view.mount(widget)
        self.log_view.anchor()


def figures_line(figures: dict[str, Any], context_length: int | None) -> str:
    """`142 tokens · 31.5 tok/s · first 0.38 s · context 612/32768`, as far as it is known."""
    ending = ENDINGS.get(str(figures.get("finish_reason")), "")
    total = f"/{context_length}" if context_length else ""
    shapes = {
        "new_tokens": "{} tokens",
        "tokens_per_second": "{:.1f} tok/s",
        "seconds_to_first_token": "first {:.2f} s",
        "context_used": f"context {{}}{total}",
        "seed": "seed {}",
    }
    known = [shape.format(figures[name]) for name, shape in shapes.items() if figures.get(name) is not None]
    return f" {glyphs().dot} ".join([*known, *([ending] if ending else [])])
