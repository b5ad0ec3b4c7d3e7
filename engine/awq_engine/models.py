"""From what a person typed to a folder with a model: a folder, a run's output, or a download from the Hub.

    spec           starts with . / ~ or exists   -> that folder
                   no slash                       -> the output of the run with that id
                   org/name[@revision]            -> the Hub's cache, downloaded first if need be

Only safetensors, JSON and tokenizer files are ever fetched: never pickles, never code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq_engine.disk import check_disk
from awq_engine.errors import AwqError, BadInputError, NetworkError
from awq_engine.hub_errors import hub_errors
from awq_engine.paths import typed_path
from awq_engine.runs import Run, RunStatus, find_run, list_runs

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

ALLOW_PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "*.tiktoken", "README.md"]
IGNORE_PATTERNS = ["*.bin", "*.py", "consolidated*", "*/*"]
"""`consolidated` files and folders inside a repository hold other formats of the same weights (onnx, original)."""

CHUNK_BYTES = 1 << 20
"""Of a file, that are counted at once: with the client's own ten times as many, a slow line seems to stand still."""

OnProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being fetched), from the downloading threads."""

REPOSITORY = r"[\w.-]+/[\w.-]+"
"""A regular expression, for ASCII."""
_HUB_ID = re.compile(rf"(?P<repo>{REPOSITORY})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model lies on this machine."""

    path: Path
    """Absolute."""
    name: str
    """Short, for titles and file names."""
    revision: str | None = None
    """The commit on the Hub, if it came from there."""


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub."""

    repo: str
    """`org/name`."""
    revision: str | None = None
    """A branch, tag or commit."""

    @property
    def name(self) -> str:
        return self.repo.rsplit("/", 1)[-1]


def resolve_model(spec: str, on_progress: OnProgress | None = None) -> ResolvedModel:
    """The folder that `spec` means, downloaded from the Hub if it is not here yet.

    Raises:
        BadInputError: no folder, run or Hub id; the run has no output; the repository has no safetensors.
        NetworkError: the Hub's refusal, as a sentence.
        ResourceError: the download does not fit on the disk.
    """
    target = parse_model(spec)
    if isinstance(target, HubId):
        return _download(target, on_progress)
    return ResolvedModel(target, target.name)


def parse_model(spec: str) -> Path | HubId:
    """What `spec` means, without touching the network: an absolute folder (it may not exist) or a Hub id."""
    path = typed_path(spec)
    if spec.startswith((".", "/", "~")) or (spec and path.exists()):
        return path.resolve()
    if "/" not in spec:
        return run_output(_run_named(spec))
    match = _HUB_ID.fullmatch(spec)
    if match is None or ".." in spec or "/." in spec:
        raise BadInputError(f"'{spec}' is neither a folder nor a Hub id (org/name or org/name@revision).")
    return HubId(match["repo"], match["revision"])


def run_output(run: Run) -> Path:
    """The finished output folder of a run; `BadInputError` when there is none."""
    output, status = Path(run.config().output), run.status()
    if status is not RunStatus.DONE:
        raise BadInputError(f"Run {run.id} is {status}, so it has no model yet; its output will be {output}.")
    if not output.is_dir():
        raise BadInputError(f"The output of run {run.id} is gone: there is no folder {output}.")
    return output


def _run_named(spec: str) -> Run:
    if spec != "latest" and not any(run.id.startswith(spec) for run in list_runs()):
        raise BadInputError(f"'{spec}' is no folder here and no run; a Hub id is written org/name.")
    return find_run(spec)


def _download(hub: HubId, on_progress: OnProgress | None) -> ResolvedModel:
    with hub_errors(hub.repo, hub.revision):
        try:
            files = _files_to_fetch(hub)
        except Exception:
            if (cached := _cached_snapshot(hub)) is None:
                raise
            return ResolvedModel(cached, hub.name, cached.name)
        _check_files(hub, files)
        path = _fetch(hub, files, on_progress)
    return ResolvedModel(path, hub.name, path.name)


def _files_to_fetch(hub: HubId) -> list[DryRunFileInfo]:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        hub.repo, revision=hub.revision, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS, dry_run=True,
        tqdm_class=_counting_bar(lambda _: None),
    )  # fmt: skip


def fetch_code(hub: HubId) -> Path:
    """The snapshot of a repository with its Python code and configs, to be looked at."""
    from huggingface_hub import snapshot_download

    with hub_errors(hub.repo, hub.revision):
        path = snapshot_download(
            hub.repo, revision=hub.revision, allow_patterns=["*.py", "*config.json"], ignore_patterns=["*/*"]
        )
    return Path(path)


def _cached_snapshot(hub: HubId) -> Path | None:
    """The complete copy an earlier download left, for when the Hub cannot be asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = snapshot_download(
            hub.repo, revision=hub.revision, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS,
            local_files_only=True,
        )  # fmt: skip
    except (LocalEntryNotFoundError, ValueError):
        return None
    return Path(path)


def _check_files(hub: HubId, files: list[DryRunFileInfo]) -> None:
    """Refuse what cannot become a model, and what does not fit, before the first byte."""
    from huggingface_hub import constants

    names = {file.filename for file in files}
    if "config.json" not in names:
        raise BadInputError(f"{hub.repo} has no config.json: it is not a transformers model.")
    if not any(name.endswith(".safetensors") for name in names):
        raise BadInputError(
            f"{hub.repo} has no safetensors weights; pickled weights can run code when opened and are never read."
        )
    check_disk(Path(constants.HF_HUB_CACHE), _bytes_to_fetch(files), f"downloading {hub.repo}")


def _fetch(hub: HubId, files: list[DryRunFileInfo], on_progress: OnProgress | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    total, commit = _bytes_to_fetch(files), files[0].commit_hash
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done = min(total, done + n_bytes)
        if on_progress and total:
            on_progress(done, total, hub.repo)

    count(0)
    path = snapshot_download(
        hub.repo, revision=commit, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS,
        tqdm_class=_counting_bar(count),
    )  # fmt: skip
    _refuse_damaged(hub, [Path(path) / file.filename for file in files if file.will_download])
    return Path(path)


def _refuse_damaged(hub: HubId, arrived: list[Path]) -> None:
    """The Hub's client compares lengths only; here the bytes are held against the hash that names each file's blob."""
    damaged = [file for file in arrived if not _fits_its_name(file.resolve())]
    for file in damaged:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
    if damaged:
        names = ", ".join(file.name for file in damaged[:3])
        raise NetworkError(f"{names} of {hub.repo} arrived damaged and was deleted; try again, the rest is kept.")


def _fits_its_name(blob: Path) -> bool:
    """Large files are named after their SHA-256, others after git's SHA-1; any other name says nothing."""
    if not _HASH.fullmatch(blob.name):
        return True
    prefix = f"blob {blob.stat().st_size}\0".encode()
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(prefix, usedforsecurity=False)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest() == blob.name


def _bytes_to_fetch(files: list[DryRunFileInfo]) -> int:
    return sum(file.file_size or 0 for file in files if file.will_download)


def _counting_bar(count: Callable[[int], None]) -> type:
    """A silent progress bar class for `snapshot_download` that hands the bytes written to disk to `count`.

    It makes three bars; only the one named as below counts what reaches the disk. Its calls come from several threads,
    so the bar's own lock guards them.
    """
    from huggingface_hub.utils import tqdm

    class CountingBar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            self._counts = kwargs.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                with self.get_lock():
                    count(int(n))

    return CountingBar


def describe_model(spec: str) -> str:
    """A short name for `spec` even when it cannot be resolved, for output folders and titles."""
    try:
        return parse_model(spec).name
    except AwqError:
        return Path(spec).name
