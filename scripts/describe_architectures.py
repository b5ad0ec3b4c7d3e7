"""Write docs/architectures.md: what the tests' tiny model of every architecture showed.

    python scripts/describe_architectures.py build/findings.jsonl

Every model type that has no line in the given file yet is taken through the pipeline (some seconds each) and gets one;
then the page is written from all lines. Delete the file, or a line, to look at a type again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from zoo import TOLERANCE, Findings, examine, quiet, why_not  # noqa: E402
from zoo_configs import UNHANDLED, VISION_LANGUAGE, causal_types  # noqa: E402

from awq_engine.errors import VerificationError  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
INTRODUCTION = f"""# Architectures

What happens to a tiny random model of every type that transformers {transformers.__version__} knows as a causal
language model, and of common vision-language types. Written by `scripts/describe_architectures.py` from the tests' own
harness (`tests/engine/zoo.py`); nothing about any architecture is written down in the quantizer.

For every type in the first two tables, four things held to within {TOLERANCE:g} of the largest logit: the blocks run
one by one as the model does; with all folds applied and nothing rounded the model computes the same; the written
checkpoint, loaded again, computes what was quantized, in transformers' own forward pass and through the integer
kernels' reference. (Where the original's own logits move further when each weight goes to the next float32 number, as
through a recurrence, folds may move them as far: twice that is allowed.)

*Linears* counts the kinds of quantized linears in a block. A *fold* is written producer → consumers; experts are
written once, as `*`. *Stays* says what is in floats and why; widths there are those of the tiny model.
"""


def main(findings: Path) -> None:
    """Look at what has not been looked at, then write the page."""
    quiet()
    findings.parent.mkdir(parents=True, exist_ok=True)
    done = {row["model_type"] for row in _rows(findings)}
    types = [*causal_types(), *VISION_LANGUAGE]
    for model_type in types:
        if model_type not in done and model_type not in UNHANDLED:
            print(model_type, file=sys.stderr, flush=True)
            with findings.open("a") as file:
                file.write(json.dumps(_look_at(model_type)) + "\n")
    PAGE.write_text("\n".join(_page({row["model_type"]: row for row in _rows(findings)})) + "\n", encoding="utf-8")


def _rows(findings: Path) -> list[dict]:
    return [json.loads(line) for line in findings.read_text().splitlines()] if findings.is_file() else []


def _look_at(model_type: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AWQ_TUI_HOME"] = str(Path(folder) / "home")
        try:
            found: Findings = examine(model_type, Path(folder))
        except VerificationError:
            return {"model_type": model_type, "error": "read back, the output computes something else; not published"}
        except Exception as error:
            return {"model_type": model_type, "error": why_not(error).replace(folder, "the folder")}
        return dataclasses.asdict(found)


def _page(rows: dict[str, dict]) -> Iterator[str]:
    causal = [t for t in causal_types() if t not in UNHANDLED]
    passed = [t for t in causal if _held(rows[t])]
    vision = [t for t in VISION_LANGUAGE if t not in UNHANDLED]
    beside = [t for t in vision if _held(rows[t])]
    yield INTRODUCTION
    yield f"## Causal language models: {len(passed)} of {len(causal_types())} types\n"
    yield from _table(rows[t] for t in passed)
    yield f"\n## Vision-language checkpoints: {len(beside)} types\n"
    yield "Their language model is quantized; towers and projectors are copied byte for byte.\n"
    yield from _table(rows[t] for t in beside)
    yield "\n## Not handled\n"
    yield "| type | why |\n|---|---|"
    failed = {t: rows[t].get("error", "the logits differ") for t in [*causal, *vision] if not _held(rows[t])}
    for model_type, why in sorted((UNHANDLED | failed).items()):
        yield f"| {model_type} | {why} |"


def _held(row: dict) -> bool:
    return "error" not in row and Findings(**row).unlike is None


def _table(rows: Iterator[dict]) -> Iterator[str]:
    yield "| type | blocks | linears | folds | stays |\n|---|---|---|---|---|"
    for row in rows:
        folds = "<br>".join(dict.fromkeys(_short(fold).replace("->", "→") for fold in row["folds"]))
        linears = len({_short(name) for name in row["linears"]})
        yield f"| {row['model_type']} | {row['blocks']} | {linears} | {folds or 'none'} | {_left(row['skipped'])} |"


def _short(name: str) -> str:
    """A name or a list of names with every number replaced by `*`, each once."""
    head, arrow, tail = name.rpartition(" -> ")
    words = [".".join("*" if part.isdigit() else part for part in word.split(".")) for word in tail.split(", ")]
    head = ".".join("*" if part.isdigit() else part for part in head.split("."))
    return head + arrow + ", ".join(dict.fromkeys(words))


def _left(skipped: dict[str, str]) -> str:
    """Names under their reasons."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped.items():
        reasons[reason].append(_short(name))
    return "<br>".join(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
