"""Text becomes exactly the windows asked for, or a sentence that says how much was missing."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine import calibration, token_windows
from awq_engine.calibration import check_vocabulary, load_calibration
from awq_engine.documents import Document
from awq_engine.errors import BadInputError, UsageError
from awq_engine.runtime import load_tokenizer
from awq_engine.token_windows import TokenStream, cut_weights, cut_windows, documents_in, first_documents, offsets, thin
from tests.engine.rounded_checkpoint import demo_model

BOS, EOS = 1, 2


class Letters:
    """One token a character, as a tokenizer with or without begin and end tokens."""

    def __init__(self, bos: int | None = BOS, eos: int | None = EOS) -> None:
        self.bos_token_id, self.eos_token_id = bos, eos
        self.characters = 0

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        self.characters += len(text)
        start = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": start + [ord(letter) for letter in text]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(demo_model())


def text_file(folder: Path, text: str) -> str:
    (folder / "a.txt").write_text(text)
    return str(folder / "a.txt")


def test_every_window_is_full_and_starts_with_bos(tmp_path: Path) -> None:
    found = load_calibration(text_file(tmp_path, "abcdefghijkl"), Letters(), samples=3, seq_len=5)
    assert found.ids.tolist() == [[BOS, *map(ord, "abcd")], [BOS, *map(ord, "efgh")], [BOS, *map(ord, "ijkl")]]
    (use,) = found.sources
    assert (use.sequences, use.tokens, use.dropped_tokens, use.weighted_tokens) == (3, 15, 1, 15)
    assert (use.documents, use.documents_used, use.documents_cut) == (1, 1, 1)


def test_tokenizer_without_bos_gets_none(tmp_path: Path) -> None:
    found = load_calibration(text_file(tmp_path, "abcdef"), Letters(bos=None, eos=None), samples=2, seq_len=3)
    assert found.ids.tolist() == [list(map(ord, "abc")), list(map(ord, "def"))]
    assert found.sources[0].dropped_tokens == found.sources[0].documents_cut == 0


def test_documents_are_joined_by_the_end_token(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("ab", "cd")))
    found = load_calibration(str(tmp_path / "a.jsonl"), Letters(bos=None), samples=1, seq_len=6)
    assert found.ids.tolist() == [[*map(ord, "ab"), EOS, *map(ord, "cd"), EOS]]


@given(st.integers(1, 300), st.integers(1, 20), st.integers(2, 20), st.booleans())
def test_windows_are_disjoint_in_order_and_spread(length: int, samples: int, seq_len: int, has_bos: bool) -> None:
    stream = TokenStream(list(range(10, 10 + length)), BOS if has_bos else None, "", "")
    body = seq_len - has_bos
    assert stream.fitting(seq_len) == length // body
    if stream.fitting(seq_len) < samples:
        return
    windows = [row[has_bos:] for row in cut_windows(stream, samples, seq_len).tolist()]
    flat = [token for window in windows for token in window]
    assert flat == sorted(set(flat))
    assert len(flat) == samples * body
    gaps = [after[0] - before[0] for before, after in pairwise(windows)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_too_few_tokens_says_needed_found_and_what_would_fit(tmp_path: Path) -> None:
    spec = text_file(tmp_path, "x" * 1199)
    with pytest.raises(BadInputError) as caught:
        load_calibration(spec, Letters(bos=None), samples=128, seq_len=512)
    message = str(caught.value)
    assert "has 1200 tokens, but 128 samples of 512 need 65536; use --samples 2 or a longer text." in message
    assert load_calibration(spec, Letters(bos=None), samples=2, seq_len=512).ids.shape == (2, 512)


def test_window_without_room_for_text_says_so(tmp_path: Path) -> None:
    spec = text_file(tmp_path, "abc")
    with pytest.raises(UsageError, match="length of 1 leaves no room after the begin-of-text token"):
        load_calibration(spec, Letters(), samples=1, seq_len=1)
    assert load_calibration(spec, Letters(bos=None), samples=1, seq_len=1).ids.tolist() == [[ord("a")]]


def test_tokens_that_the_embedding_lacks_are_refused() -> None:
    check_vocabulary(torch.tensor([[0, 95]]), 96)
    with pytest.raises(BadInputError, match="makes token 96, but its embedding has only 96 rows"):
        check_vocabulary(torch.tensor([[0, 96]]), 96)


@given(st.integers(0, 3000), st.integers(1, 64), st.integers(2, 256), st.booleans())
def test_suggestions_really_fit(length: int, samples: int, seq_len: int, has_bos: bool) -> None:
    stream = TokenStream([5] * length, BOS if has_bos else None, "", "")
    if stream.fitting(seq_len) >= samples:
        return
    words = calibration._too_few(stream, samples, seq_len).rstrip(".").replace(";", "").split()
    if "--samples" in words:
        assert stream.fitting(seq_len) == int(words[words.index("--samples") + 1])
    if "--seq-len" in words:
        assert stream.fitting(int(words[words.index("--seq-len") + 1])) >= samples


@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=30), st.integers(1, 400_000))
@settings(max_examples=50)
def test_thinning_keeps_order_and_about_the_amount(lengths: list[int], max_chars: int) -> None:
    texts = [Document(chr(0x4E00 + number) * length) for number, length in enumerate(lengths)]
    kept = thin(texts, max_chars)
    joined = "".join(document.text for document in kept)
    assert joined == "".join(sorted(joined))
    assert len(joined) <= sum(lengths)
    if len(joined) < sum(lengths):
        assert all(len(document.text) <= token_windows.EXCERPT for document in kept)


def test_thinning_takes_from_everywhere() -> None:
    text = "".join(chr(0x4E00 + number) * 1000 for number in range(5000))
    kept = [document.text for document in thin([Document(text)], 500_000)]
    assert 400_000 <= sum(map(len, kept)) <= 600_000
    places = [ord(excerpt[0]) - 0x4E00 for excerpt in kept]
    assert places[0] < 500
    assert places[-1] > 4500


def test_first_documents_reach_the_amount_and_no_further() -> None:
    documents = [Document("aa"), Document("bb"), Document("cc")]
    assert first_documents(documents, 3) == documents[:2]
    assert first_documents(documents, 4) == documents[:2]
    assert first_documents(documents, 100) == documents


def test_long_text_is_not_tokenized_whole(tmp_path: Path) -> None:
    letters = Letters()
    found = load_calibration(text_file(tmp_path, "x" * 2_000_000), letters, samples=2, seq_len=100)
    assert letters.characters < 200_000
    assert "a sample of" in found.sources[0].detail
    assert "of its 2000000 characters" in found.sources[0].detail


def test_sample_that_turns_out_too_short_is_widened_to_the_whole(tmp_path: Path) -> None:
    class Sparse(Letters):
        def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
            return super().__call__(text[::200], add_special_tokens, verbose)

    found = load_calibration(text_file(tmp_path, "x" * 400_000), Sparse(bos=None), samples=10, seq_len=150)
    assert found.ids.shape == (10, 150)
    assert found.sources[0].detail == ""


def test_builtin_text_is_enough_for_the_default_number_of_windows(tokenizer: Any) -> None:
    found = load_calibration("builtin", tokenizer, samples=128, seq_len=256)
    assert found.sources[0].source == "builtin"
    assert (found.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (found.ids[:, 1:] != tokenizer.bos_token_id).all()


def test_long_document_is_tokenized_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers warns once per tokenizer about more tokens than the context, so this one is new."""
    spec = text_file(tmp_path, "There was a dog who did not like the rain. " * 500)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        first, second = (load_calibration(spec, load_tokenizer(demo_model()), 4, 512) for _ in range(2))
    finally:
        logger.removeHandler(caplog.handler)
    assert first.ids.equal(second.ids)
    assert "sequence length is longer" not in caplog.text


def test_messages_go_through_the_models_own_template(tokenizer: Any, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": "No."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    found = load_calibration(str(tmp_path / "a.jsonl"), tokenizer, samples=1, seq_len=8)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(tokenizer.bos_token)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert found.ids[0, 1:].tolist() == ids[:7]


class Words(Letters):
    """Letters that also say where in the text they stand."""

    is_fast = True
    chat_template = None

    def __call__(  # type: ignore[override]
        self, text: str, add_special_tokens: bool = True, verbose: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        found: dict[str, Any] = super().__call__(text, add_special_tokens, verbose)
        return found | ({"offset_mapping": [(n, n + 1) for n in range(len(text))]} if return_offsets_mapping else {})


def chats(folder: Path, *pairs: tuple[str, str], name: str = "chat.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
    return str(folder / name)


def counted(found: calibration.Calibration) -> str:
    """The tokens that count, as text."""
    assert found.weights is not None
    ids = found.ids[found.weights > 0].tolist()
    return "".join(chr(token) for token in ids if token not in (BOS, EOS))


def test_only_answers_count(tmp_path: Path) -> None:
    spec = chats(tmp_path, ("who", "me"), ("why", "no reason"))
    found = load_calibration(spec, Words(eos=None), samples=1, seq_len=55, answers=True)
    assert counted(found) == "meno reason"[: len(counted(found))]
    assert counted(found).startswith("meno")
    assert found.sources[0].weighted_tokens == len(counted(found)) + 1
    assert load_calibration(spec, Words(eos=None), 1, 55).weights is None


def test_answers_that_span_calls_of_the_tokenizer_count_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_windows, "CHARS_PER_CALL", 5)
    found = load_calibration(chats(tmp_path, ("q", "abcdefghijklmnop")), Words(bos=None), 1, 37, answers=True)
    assert counted(found) == "abcdefghijklmnop"


def test_plain_text_beside_conversations_counts_whole(tmp_path: Path) -> None:
    spec = f"{chats(tmp_path, ('who', 'me'))}+{text_file(tmp_path, 'plain')}"
    found = load_calibration(spec, Words(bos=None, eos=None), samples=2, seq_len=5, answers=True)
    assert found.weights is not None
    assert found.weights[1].tolist() == [1.0] * 5


def test_answers_need_conversations_and_a_tokenizer_that_tells_places(tmp_path: Path) -> None:
    spec = text_file(tmp_path, "plain text")
    with pytest.raises(UsageError, match="has no conversations, so --answer-only has nothing to weigh"):
        load_calibration(spec, Words(), samples=1, seq_len=5, answers=True)
    with pytest.raises(UsageError, match="cannot tell which text a token stands for; leave out --answer-only"):
        load_calibration(spec, Letters(), samples=1, seq_len=5, answers=True)


def test_sources_share_the_samples(tmp_path: Path) -> None:
    spec = f"{text_file(tmp_path, 'a' * 50)}+self+{chats(tmp_path, ('b' * 30, 'c' * 30))}"
    found = load_calibration(spec, Words(), 7, 5, write=lambda samples: torch.full((samples, 5), 9))
    assert [use.sequences for use in found.sources] == [3, 2, 2]
    assert [use.source.rpartition("/")[2] for use in found.sources] == ["a.txt", "self", "chat.jsonl"]
    assert found.ids.shape == (7, 5)
    assert (found.ids[3:5] == 9).all()
    with pytest.raises(UsageError, match="3 calibration sources need at least as many samples; use --samples 3"):
        load_calibration(spec, Words(), 2, 5)


def test_file_with_a_plus_in_its_name_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "c++.txt").write_text("x" * 20)
    found = load_calibration(str(tmp_path / "c++.txt"), Words(), 2, 5)
    assert len(found.sources) == 1


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 10), st.integers(2, 20), st.booleans(),
    st.data(),
)  # fmt: skip
def test_windows_account_for_every_token(
    lengths: list[int], samples: int, seq_len: int, has_bos: bool, data: st.DataObject
) -> None:
    """Used, cut and dropped are what a count by hand finds; weights stand where their tokens stand."""
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=sum(lengths), max_size=sum(lengths)))
    stream = TokenStream(
        list(range(10, 10 + sum(lengths))), BOS if has_bos else None, "", "", weights, len(lengths),
        tuple((start, number) for number, start in enumerate(starts)),
    )  # fmt: skip
    if stream.fitting(seq_len) < samples:
        return
    ids = cut_windows(stream, samples, seq_len)[:, has_bos:] - 10
    taken = set(ids.flatten().tolist())
    documents = [set(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    used = [document for document in documents if document & taken]
    assert documents_in(stream, samples, seq_len) == (len(used), sum(not document <= taken for document in used))
    found = cut_weights(stream, samples, seq_len)
    assert found is not None
    assert found[:, has_bos:].tolist() == [[weights[token] for token in row] for row in ids.tolist()]
    assert offsets(stream, samples)[0] == 0


@given(st.text(min_size=1, max_size=60), st.data())
def test_excerpts_keep_their_answers(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = tuple(zip(places[::2], places[1::2], strict=False))
    start, stop = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    found = Document(text, spans).excerpt(start, stop)
    inside = [n for n in range(start, stop) if any(a <= n < b for a, b in spans)]
    assert found.text == text[start:stop]
    assert [n + start for a, b in found.answers or () for n in range(a, b)] == inside
