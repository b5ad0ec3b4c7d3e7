"""Two answers compared word by word."""

from __future__ import annotations

import math

from awq_engine.token_scores import TokenScore
from awq_tui.differences import MAX_WORDS, Span, compare_answers, compare_scores


def test_what_differs_is_marked_and_nothing_is_lost() -> None:
    first, second = "A salient channel is much larger.\n", "A salient channel is  far larger than others.\n"
    found = compare_answers(first, second)
    assert "".join(span.text for span in found.first) == first
    assert "".join(span.text for span in found.second) == second
    assert [span.text.strip() for span in found.first if span.differs] == ["much larger."]
    assert found.same_start == 4


def test_equal_answers_have_no_mark() -> None:
    found = compare_answers("one two", "one  two")
    assert (found.shared, found.same_start, found.first) == (1.0, 2, (Span("one two", False),))


def test_answers_that_share_nothing_or_are_empty() -> None:
    assert compare_answers("", "").shared == 1.0
    assert compare_answers("", "a b").second == (Span("a b", True),)
    assert compare_answers("x y", "a b").shared == 0.0


def test_a_very_long_answer_is_compared_in_part() -> None:
    words = "word " * (MAX_WORDS + 10)
    found = compare_answers(words, words)
    assert [span.differs for span in found.first] == [False, True]
    assert "".join(span.text for span in found.first) == words


def score(token: int, text: str, probability: float) -> TokenScore:
    """Two tokens, 0 and 1; `probability` is that of token 0."""
    probabilities = sorted([(0, probability), (1, 1 - probability)], key=lambda pair: -pair[1])
    top = tuple((number, math.log(p)) for number, p in probabilities)
    return TokenScore(token, text, 0.0, 1, "", top, 0.0)


def test_tokens_are_marked_where_the_original_would_go_on_differently() -> None:
    original = [score(0, "A", 0.9), score(0, " b", 0.1), score(0, " c", 0.97)]
    quantized = [score(0, "A", 0.9), score(0, " b", 0.9), score(0, " c", 0.55)]
    found = compare_scores(original, quantized)
    assert found is not None
    assert found.spans == (Span("A", False), Span(" b", True), Span(" c", False, doubtful=True))
    assert found.agreement == 2 / 3
    expected = 0.1 * math.log(0.1 / 0.9) + 0.9 * math.log(0.9 / 0.1)
    assert math.isclose(found.worst_kl, expected)
    assert found.worst.text == " b"


def test_other_tokens_cannot_be_compared() -> None:
    assert compare_scores([score(0, "a", 0.5)], [score(1, "a", 0.5)]) is None
    assert compare_scores([], []) is None
