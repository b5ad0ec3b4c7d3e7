"""What the configure form asks, field by field: the value of a draft, what it means, and what can be chosen.

No Textual here; `widgets/draft_form` makes a line of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from awq_engine.config import GROUP_SIZES, SUPPORTED_BITS, Format, Method, Preset
from awq_tui.draft import Draft, TextSource


@dataclass(frozen=True)
class Field:
    """One line of the form, and one value of a draft."""

    name: str
    """Of the draft's value."""
    id: str
    label: str
    about: str
    """What it means and what to choose, in a sentence or two."""
    options: tuple[tuple[str, Hashable], ...] = ()
    """To choose from; without any, the value is typed."""
    placeholder: str = ""
    length: int = 0
    """Of what is typed at most; 0 for any."""


def _names(values: Iterable[Any]) -> tuple[tuple[str, Hashable], ...]:
    return tuple((str(value), value) for value in values)


FIELDS: dict[str, tuple[Field, ...]] = {
    "What comes out": (
        Field(
            "bits",
            "bits",
            "Bits",
            "Of each weight: 4 is usual, 8 loses next to nothing, 3 and 2 are felt.",
            _names(SUPPORTED_BITS),
        ),
        Field(
            "layout",
            "format",
            "Format",
            "awq is AutoAWQ's, with 4 bits, and read nearly everywhere. compressed-tensors "
            "and gptq hold 2, 3 and 8 bits too.",
            _names(Format),
        ),
        Field(
            "group_size",
            "group-size",
            "Group size",
            "Inputs that share one scale: smaller is more exact and larger on "
            "disk; a row is one scale for all of them.",
            tuple(("row (-1)" if size == -1 else str(size), size) for size in GROUP_SIZES),
        ),
        Field(
            "symmetric",
            "symmetric",
            "Zero points",
            "Asymmetric ones are chosen for every group and lose less; some kernels want symmetric ones.",
            (("asymmetric", False), ("symmetric", True)),
        ),
        Field(
            "preset",
            "preset",
            "Preset",
            "fast is AWQ as AutoAWQ does it; balanced also mends rounding errors as it goes; "
            "best does so by what each output means to the prediction.",
            _names(Preset),
        ),
        Field(
            "method",
            "method",
            "Method",
            "AWQ scales channels before it rounds; GPTQ only mends errors as it rounds; "
            "rounding alone looks at no text.",
            (("AWQ", Method.AWQ), ("GPTQ", Method.GPTQ), ("round to nearest", Method.RTN)),
        ),
    ),
    "Calibration": (
        Field(
            "text_source",
            "text-source",
            "Text",
            "What shows which channels matter: our mixture, a file or folder, a data "
            "set on the Hub, or what the model itself writes.",
            (
                ("built in", TextSource.BUILTIN),
                ("file", TextSource.FILE),
                ("Hub", TextSource.HUB),
                ("its own", TextSource.SELF),
            ),
        ),
        Field("text", "text", "", "Where that text is: prose, or conversations, which get the model's chat template."),
        Field(
            "samples",
            "samples",
            "Samples",
            "Pieces of text: more take longer, and change the result less and less.",
            length=6,
        ),
        Field("seq_len", "seq-len", "Tokens each", "Length of a piece, at most the model's context.", length=6),
        Field(
            "answer_only",
            "answer-only",
            "What counts",
            "Of conversations, all of the text or only the model's own turns.",
            (("all text", False), ("answers only", True)),
        ),
    ),
    "Where it goes": (
        Field(
            "output",
            "output",
            "Output",
            "The folder of the result; it appears when the result is complete and checked.",
        ),
        Field(
            "overwrite",
            "overwrite",
            "If it exists",
            "An older model is exchanged for the new one once that is complete.",
            (("stop", False), ("overwrite", True)),
        ),
    ),
    "Exceptions": (
        Field(
            "target_bpw",
            "target-bpw",
            "Size",
            "To meet instead: bits and group size are then chosen for every linear, so that the least is lost.",
            placeholder="bits per weight, such as 4.25",
        ),
        Field(
            "lm_head",
            "lm-head",
            "Output head",
            "Quantized too where it is no embedding table: vLLM reads that, and transformers in compressed-tensors.",
            (("in floats", False), ("quantized", True)),
        ),
        Field(
            "overrides",
            "override",
            "Overrides",
            "Exceptions with spaces between, such as *.layers.0.*=bits:8,group:64 "
            "*.o_proj=skip; the last that fits a linear decides.",
            placeholder="PATTERN=bits:8,group:64 or =skip",
        ),
    ),
    "This machine": (
        Field("device", "device", "Device", "auto takes a GPU where there is one.", _names(("auto", "cpu", "cuda"))),
        Field(
            "max_memory",
            "max-memory",
            "Memory",
            "Of the host, to stay under; with little, hidden states go to disk.",
            placeholder="what is free, or such as 4GB",
        ),
        Field(
            "workers",
            "workers",
            "Processes",
            "That share the work, each on a GPU of its own where there are several; the result is the same.",
            length=3,
        ),
        Field("threads", "threads", "Threads each", "CPU threads of each process; 0 shares all of them out.", length=4),
        Field("on", "on", "Ray cluster", "Whose machines do the work.", placeholder="none, or ray://host:10001"),
        Field("seed", "seed", "Seed", "Of all that is drawn: the same seed gives the same bytes.", length=9),
    ),
}
"""By the heading that they stand under."""

ALL = tuple(field for group in FIELDS.values() for field in group)


def about(id: str | None) -> tuple[str, str]:  # noqa: A002
    """A field's label and what it means."""
    found = next((field for field in ALL if field.id == id), None)
    return (found.label, found.about) if found else ("", "")


def to_texts(draft: Draft) -> dict[str, str]:
    """A draft's values as texts, to be kept between two starts of the app."""
    return {field.name: str(getattr(draft, field.name)) for field in dataclasses.fields(draft)}


def from_texts(texts: Mapping[str, str], draft: Draft) -> Draft:
    """`draft` with the values that `to_texts` made; what cannot be read is left as it is."""
    return Draft(
        **{**{item.name: getattr(draft, item.name) for item in dataclasses.fields(draft)}, **dict(_read(texts))}
    )


def _read(texts: Mapping[str, str]) -> Iterator[tuple[str, Hashable]]:
    for field in ALL:
        text = texts.get(field.name)
        if text is None:
            continue
        if not field.options:
            yield field.name, text
        else:
            yield from ((field.name, value) for _, value in field.options if str(value) == text)
