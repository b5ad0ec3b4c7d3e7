"""Tokens to text as they come: never half a character, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of an unfinished character to."""


class Detokenizer:
    """Tokens to text as they come, never half a character.

    Decodes a short window only, as the same token can decode differently after others (a leading space, mostly): text
    is what the window says with the new tokens and did not say before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        """`prompt` gives the window something to start from."""
        self._tokenizer = tokenizer
        self._window = list(prompt[-4:])
        self._said = len(self._window)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._window.append(token)
        before, now = self._decode(self._window[: self._said]), self._decode(self._window)
        if now.endswith(INCOMPLETE) or len(now) <= len(before):
            return ""
        self._window, self._said = self._window[self._said :], len(self._window) - self._said
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, without the bytes of a character that never was completed."""
        before, now = self._decode(self._window[: self._said]), self._decode(self._window)
        return now[len(before) :].rstrip(INCOMPLETE)

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Lets text through until the first stop string, which can come in any number of pieces.

    The end of the text is held back as long as it could be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        """Whether a stop string came; nothing is let through after it."""

    def push(self, text: str) -> str:
        """What may be shown now."""
        if self.found:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the one complete first, however the text was cut into pieces
            self.found = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """At the end of the text: what was held back for nothing."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
