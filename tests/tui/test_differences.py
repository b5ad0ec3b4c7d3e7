"""Two answers compared word by word."""

from __future__ import annotations

from awq_tui.differences import MAX_WORDS, Span, compare_answers


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
