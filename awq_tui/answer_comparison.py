"""The last answers of two models, compared: other words first, then how likely each finds the tokens of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from awq_engine.sanitize import one_line
from awq_engine.token_scores import TokenScore
from awq_tui.background import in_thread
from awq_tui.chats import Chat
from awq_tui.differences import compare_answers, compare_scores
from awq_tui.thoughts import split_thought
from awq_tui.widgets.chat_side import ChatSide
from awq_tui.widgets.glyphs import glyphs


class AnswerComparison:
    """Marks what differs in both columns and tells the figures to `say`."""

    def __init__(self, sides: Sequence[ChatSide], say: Callable[[str], None]) -> None:
        self._sides = sides
        """The screen's own list: a side may be put beside the first at any time."""
        self._say = say
        self._scores: dict[int, list[TokenScore]] = {}
        """By side: what it thinks of the first side's last answer."""
        self._words = ""
        """How the words of the last answers compare."""

    async def compare(self, chat: Chat) -> None:
        """The words of the last two answers; then both models are asked for their scores."""
        replies = chat.turns[-1].replies if chat.turns else ()
        if len(replies) < 2 or replies[0] is None or replies[1] is None:
            return
        first, second = (split_thought(reply.text).answer for reply in replies if reply)
        found = await in_thread(compare_answers, first, second)
        for side, spans in zip(self._sides, (found.first, found.second), strict=False):
            side.mark(spans)
        same = "the same words" if found.shared == 1 else f"{100 * found.shared:.0f} % of the words shared"
        start = "" if found.shared == 1 else f", the first {found.same_start} the same"
        self._words = f"{same}{start}"
        self._say(self._words)
        self._scores.clear()
        for side in self._sides:
            await side.score(chat, replies[0].text)

    async def take_scores(self, side: int, scores: list[TokenScore]) -> None:
        """One model has looked at the first answer, token by token; the second one to do so makes them comparable."""
        self._scores[side] = scores
        if len(self._scores) < 2 or len(self._sides) < 2:
            return
        original = 1 if self._bits(1) >= self._bits(0) else 0
        found = await in_thread(compare_scores, self._scores[original], self._scores[1 - original])
        if found is None:
            self._say(f"{self._words}; their tokens are not the same, so there is no KL")
            return
        self._sides[0].mark(found.spans)
        dot, worst = f" {glyphs().dot} ", f"highest {found.worst_kl:.2f} at '{one_line(found.worst.text.strip())}'"
        figures = f"A: KL {found.kl:.4f} a token, {worst}{dot}same first choice {100 * found.agreement:.0f} %"
        self._say(f"{figures}{dot}{self._words}")

    def _bits(self, side: int) -> float:
        """Per weight of a side's model; the model with more is taken for the original."""
        ready = self._sides[side].ready
        return ready.bits_per_weight if ready else 0.0
