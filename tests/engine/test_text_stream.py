"""Tokens to text: whole characters, and nothing of a stop string."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from rounded_checkpoint import demo_model

from awq_engine.runtime import load_tokenizer
from awq_engine.text_stream import Detokenizer, StopStrings

TOKENIZER = load_tokenizer(demo_model())
SHORT = st.text(alphabet="abc", min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=40))
def test_pieces_are_whole_characters_and_lose_nothing(text: str) -> None:
    """Any text, emoji and combining marks included, comes out as it went in, never with half a character."""
    tokens = list(TOKENIZER.encode(text, add_special_tokens=False))
    expected = TOKENIZER.decode(tokens, skip_special_tokens=True)
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in tokens]
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert "".join(pieces) + detokenizer.flush() == expected


def test_half_a_character_at_the_end_is_dropped() -> None:
    tokens = list(TOKENIZER.encode("a🙂", add_special_tokens=False))
    assert len(tokens) > 2, "the tokenizer has no token for the whole character"
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(detokenizer.push(token) for token in tokens[:-1]) + detokenizer.flush()
    assert text.strip() == "a"


@settings(max_examples=300)
@given(st.text(alphabet="abc", max_size=14), st.lists(SHORT, max_size=3), st.lists(st.integers(0, 14), max_size=6))
def test_stop_strings_do_not_care_how_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """Everything before the stop string that is complete first; all of the text where there is none."""
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    stream = StopStrings(stops)
    shown = "".join(stream.push(text[a:b]) for a, b in pairwise(edges)) + stream.flush()
    ends = [(end, end - len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    assert stream.found == bool(ends)
    assert shown == (text[: min(ends)[1]] if ends else text)


def test_text_is_held_back_no_longer_than_it_could_be_a_stop_string() -> None:
    stream = StopStrings(["<end>"])
    assert [stream.push(piece) for piece in ("a<", "e", "x<e", "nd", ">b")] == ["a", "", "<ex", "", ""]
    assert (stream.found, stream.push("more"), stream.flush()) == (True, "", "")
