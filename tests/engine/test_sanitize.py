"""Nothing a model or a file name says can steer a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from awq_engine.sanitize import one_line, plain


def test_escape_sequences_become_visible() -> None:
    assert plain("\x1b]0;title\x07 \x1b[2J \x9b31m \x7f") == "␛]0;title␇ ␛[2J \ufffd31m ␡"


def test_newline_and_tab_stay() -> None:
    assert plain("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb\u2028c") == "a␤ b␤c"


def test_text_in_any_language_stays() -> None:
    text = "Grüße, 你好, שלום, emoji 👩‍👩‍👧"
    assert plain(text) == text


def test_bidirectional_controls_are_replaced() -> None:
    assert plain("safe\u202etxt.exe\u2066") == "safe\ufffdtxt.exe\ufffd"


@given(st.text(st.characters(codec=None)))
def test_no_control_character_is_left(text: str) -> None:
    shown = plain(text)
    assert all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") for char in shown)
    assert len(shown) == len(text)
    shown.encode()


@given(st.lists(st.text()))
def test_pieces_of_a_stream_give_the_same_text(pieces: list[str]) -> None:
    assert "".join(map(plain, pieces)) == plain("".join(pieces))
