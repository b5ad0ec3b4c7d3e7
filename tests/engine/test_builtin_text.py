"""The built-in text: mixed, in a fixed order, different for calibration and evaluation, read without running it."""

import re
import subprocess
import sys

import pytest

from awq_engine import builtin_text

SHINGLE = 10


@pytest.fixture(scope="module")
def calibration() -> list[str]:
    """With conversations written out."""
    return [builtin_text.written_out(document) for document in builtin_text.calibration_documents()]


def shingles(documents: list[str]) -> set[tuple[str, ...]]:
    """All runs of ten words."""
    words = re.findall(r"\w+", "\n".join(documents).lower())
    return set(zip(*(words[start:] for start in range(SHINGLE)), strict=False))


def test_the_order_is_fixed_and_nothing_comes_twice(calibration):
    """Two calls give the same different documents, none of them empty."""
    assert builtin_text.calibration_documents() == builtin_text.calibration_documents()
    assert len(set(calibration)) == len(calibration)
    assert all(document.strip() for document in calibration + builtin_text.evaluation_documents())


def test_evaluation_text_is_not_calibration_text(calibration):
    """No ten words in a row occur in both."""
    evaluation = shingles(builtin_text.evaluation_documents())
    assert len(evaluation) > 3000
    assert not shingles(calibration) & evaluation


def test_there_is_enough_of_both(calibration):
    """Evaluation fills 25 kB; calibration reaches 128 samples of 2048 tokens at some four bytes a token."""
    assert sum(len(d.encode()) for d in builtin_text.evaluation_documents()) > 25_000
    assert sum(len(d.encode()) for d in calibration) > 128 * 2048 * 4


def test_the_front_is_a_mixture(calibration):
    """Each of our kinds of text and both kinds of the interpreter's are among the first nine documents."""
    first = calibration[:9]
    own = builtin_text.own_documents(builtin_text.DATA / "calibration")
    for kind, documents in zip(builtin_text.KINDS, own, strict=True):
        assert builtin_text.written_out(documents[0]) in first, kind
    assert builtin_text.interpreter_sources()[0] in first
    assert builtin_text.interpreter_documentation()[0] in first


def test_dialogues_are_written_out_with_their_speakers():
    """A conversation becomes text in which user and assistant take turns."""
    for folder in ("calibration", "evaluation"):
        for dialogue in builtin_text.read_dialogues(builtin_text.DATA / folder / "dialogues.jsonl"):
            speakers = re.findall(r"^(User|Assistant|System): ", builtin_text.written_out(dialogue), flags=re.MULTILINE)
            turns = [speaker for speaker in speakers if speaker != "System"]
            assert turns == ["User", "Assistant"] * (len(turns) // 2)
            assert turns


def test_a_python_without_its_documentation_still_has_our_text(monkeypatch, tmp_path):
    """Standard library files that are missing are passed over."""
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", lambda name: str(tmp_path))
    documents = [builtin_text.written_out(document) for document in builtin_text.calibration_documents()]
    assert 50_000 < sum(map(len, documents)) < 100_000
    assert any("lighthouse on Crow Point" in document for document in documents)


def test_every_listed_module_is_read():
    """The lists name files that this Python has, and each gives text."""
    for name in builtin_text.DOCUMENTED.split():
        assert list(builtin_text.module_docstrings(name)), name
    for name in builtin_text.SOURCES.split():
        assert builtin_text.standard_source(f"{name}.py"), name
    assert len(builtin_text.topic_texts()) > 50


def test_reading_the_documentation_imports_none_of_it():
    """Modules whose docstrings are taken are parsed, not run: turtle would need a display."""
    program = (
        "import sys; from awq_engine.builtin_text import calibration_documents as documents; documents();"
        "print([name for name in ('turtle', 'imaplib', 'doctest', 'pydoc_data.topics') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_pieces_keep_every_paragraph():
    """Cutting a text into documents loses and repeats nothing."""
    paragraphs = [f"{number} " + "word " * number for number in range(1, 120)]
    cut = list(builtin_text.pieces("\n\n".join(paragraphs)))
    assert len(cut) > 10
    assert "".join(cut).split() == " ".join(paragraphs).split()
