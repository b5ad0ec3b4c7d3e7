"""Replies of reasoning models: thought and answer, also while they stream."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from awq_tui.thoughts import Parts, split_thought


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nHm, two.\n</think>\n\nIt is **two**.", "Hm, two.", "It is **two**."),
        ("  \n<thinking>a</thinking>b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<think>\n\n</think>\n\nNo thought at all.", "", "No thought at all."),
        ("I was told the tag.\n</think>\nSo: two.", "I was told the tag.", "So: two."),
        ("Write `<think>x</think>` to make it think.", "", "Write `<think>x</think>` to make it think."),
        ("<thinker> is no tag", "", "<thinker> is no tag"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("", "", ""),
    ],
)
def test_a_whole_reply_is_taken_apart(text: str, thought: str, answer: str) -> None:
    assert split_thought(text) == Parts(thought, answer)


@pytest.mark.parametrize(
    "text", ["<think>\nHm <b>.\n</think>\n\nIt is < 3.", "So.\n</think>\nTwo </think> tags", "a < b"]
)
def test_while_it_streams_no_part_of_a_tag_is_ever_shown(text: str) -> None:
    """What is shown grows, except that an answer becomes a thought when its closing tag comes."""
    shown = [split_thought(text[:end], complete=False) for end in range(len(text) + 1)]
    assert shown[-1] == Parts(split_thought(text).thought, split_thought(text).answer)
    for before, after in pairwise(shown):
        assert after.answer.startswith(before.answer) or (not before.thought and after.thought)
        if text.startswith("<think>"):
            assert "think" not in after.answer + after.thought


def test_a_thought_that_goes_on_says_so() -> None:
    assert split_thought("<think>first, </th", complete=False) == Parts("first,", "", thinking=True)
    assert split_thought("<thi", complete=False) == Parts("", "")
    assert split_thought("<thi") == Parts("", "<thi")


def test_a_very_long_reply_costs_little_at_each_piece() -> None:
    """It is looked at twenty times a second; a search of all of it with an expression took a quarter of a second."""
    text = "A line of the answer.\n" * 50_000
    started = time.process_time()
    split_thought(text, complete=False)
    assert time.process_time() - started < 0.1
