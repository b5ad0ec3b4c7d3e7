"""A quantized model put on the Hub: what would go there, and then, once somebody agreed, that and nothing else.

Only the model's own files go, never a link's target, code or a pickle. The card gets the measured quality of the run
that made the model, and the repository's name in its serving line. Tokens are huggingface_hub's alone.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.card import SERVED
from awq_engine.checkpoint import read_checkpoint
from awq_engine.errors import BadInputError, NetworkError, UsageError
from awq_engine.evaluations import Evaluation, read_evaluation
from awq_engine.formats.stated import read_quantization
from awq_engine.hub_errors import LOG_IN, hub_errors
from awq_engine.runs import list_runs
from awq_engine.writer import copied_patterns

WEIGHTS = "*.safetensors"
"""Of the model's folder, besides its card."""
CARD = "README.md"
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class PushPlan:
    """What would go to the Hub."""

    repo: str
    """`org/name`."""
    folder: Path
    files: dict[str, int]
    """Names and bytes, the card's among them."""
    left_out: tuple[str, ...]
    """Names in the folder that stay here."""
    card: str
    private: bool

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """What `push --json` prints."""
        return {
            "repo": self.repo, "private": self.private, "files": self.files, "left_out": list(self.left_out),
            "bytes": self.nbytes,
        }  # fmt: skip


def plan_push(folder: Path, repo: str, *, private: bool) -> PushPlan:
    """What of `folder` goes to `repo`; touches no network.

    Raises `UsageError` for a name that is none, `BadInputError` for a folder without a quantized model.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"'{repo}' is no repository on the Hub; write it as org/name.")
    if read_quantization(read_checkpoint(folder)) is None:
        raise BadInputError(f"{folder} is not quantized; push puts quantized models on the Hub.")
    card = _card(folder, repo)
    patterns = (WEIGHTS, *copied_patterns(folder))
    wanted = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()}
    files = {path.name: path.stat().st_size for path in sorted(wanted)}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in files and path.name != CARD)
    return PushPlan(repo, folder, files | {CARD: len(card.encode())}, tuple(left_out), card, private)


def push(plan: PushPlan) -> str:
    """Make the repository if need be and commit the files to it; returns the commit's address.

    Raises `NetworkError` when nobody is logged in or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise NetworkError(f"Nobody is logged in to the Hub here; log in with {LOG_IN} first.")
    sources = {name: plan.card.encode() if name == CARD else plan.folder / name for name in plan.files}
    operations = [CommitOperationAdd(name, source) for name, source in sources.items()]
    with hub_errors(plan.repo):
        api = HfApi()
        api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        return api.create_commit(plan.repo, operations, commit_message="Quantized with awq-tui").commit_url


def _card(folder: Path, repo: str) -> str:
    """The folder's card with the repository's name and what was measured; a minimal one where there is none."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else f"# {repo.partition('/')[2]}\n"
    text = text.replace(f"vllm serve {SERVED} ", f"vllm serve {repo} ")
    measured = _measured(folder)
    return f"{text.rstrip()}\n\n{_quality(measured)}" if measured else text


def _measured(folder: Path) -> Evaluation | None:
    """Of the newest run whose output this folder is."""
    for run in list_runs():
        with suppress(BadInputError):  # a run of another version
            if Path(run.config().output).resolve() == folder.resolve() and (found := read_evaluation(run)):
                return found
    return None


def _quality(measured: Evaluation) -> str:
    rows = {
        "perplexity of the original": _number(measured.perplexity_original, ".3f"),
        "perplexity quantized": _number(measured.perplexity, ".3f"),
        "KL divergence from the original, nats per token": f"{measured.kl:.5f}"
        + (f" ± {measured.kl_error:.5f}" if measured.kl_error else ""),
        "same most likely token": f"{measured.top1_agreement:.1%}",
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    text = measured.text if "/" not in measured.text else Path(measured.text.partition(" (")[0]).name
    return (
        f"## Measured\n\nBy `awq-tui eval --against`, on {measured.tokens} tokens of {text} in windows of "
        f"{measured.seq_len}.\n\n| | |\n|---|---:|\n{table}\n"
    )


def _number(value: float | None, form: str) -> str:
    return "too large" if value is None else format(value, form)
