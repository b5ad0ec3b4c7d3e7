"""Python code that a model brings along: run only after a person allowed exactly these bytes.

A config may name classes in files beside it (`auto_map`), for a type of model that transformers does not know. `awq-tui
trust MODEL` shows repository, commit and every Python file with its SHA-256, and keeps the hash of that list once
somebody agrees. A folder is trusted as long as its list has that hash: another line in a file, or another file, and it
is not. So a quantized copy, which has the same files, is trusted too. Code that would come from another repository is
not in the list and is never run, nor is code in folders of the model's folder (transformers would run a
`custom_generate/generate.py`), nor a model's where transformers itself knows the type.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awq_engine.checkpoint import refuse_links_out
from awq_engine.errors import BadInputError
from awq_engine.storage import home, write_atomically

CODE = "*.py"
CONFIGS = "*config.json"
"""Where classes of other files are named: the model's, the tokenizer's."""


@dataclass(frozen=True)
class OwnCode:
    """The code in a model folder, and where it came from as far as the folder says."""

    repository: str
    """`org/name`, empty for a folder that is not of the Hub's cache."""
    commit: str
    files: dict[str, str]
    """Name -> SHA-256 of every Python file."""

    @property
    def digest(self) -> str:
        """SHA-256 of the list of files, as `sha256sum *.py` prints it."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def own_code(folder: Path) -> OwnCode:
    """The code in `folder`; `BadInputError` where a file is a link out of it."""
    refuse_links_out(folder)
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob(CODE))}
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/") if cached else ""
    return OwnCode(repository, folder.name if cached else "", files)


def code_elsewhere(folder: Path) -> list[str]:
    """Classes that a config names in other repositories, `org/name--file.Class`, and files in folders within."""
    nested = sorted(str(file.relative_to(folder)) for file in folder.glob(f"*/**/{CODE}"))
    found: list[Any] = []
    for file in folder.glob(CONFIGS):
        # what is no config names no class
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            for classes in json.loads(file.read_bytes())["auto_map"].values():
                found += classes if isinstance(classes, list) else [classes]
    return nested + sorted({str(name) for name in found if "--" in str(name)})


def is_trusted(folder: Path) -> bool:
    """Whether the folder has code, all of it here and allowed."""
    code = own_code(folder)
    return bool(code.files) and code.digest in _allowed() and not code_elsewhere(folder)


def allow(code: OwnCode) -> None:
    """Keep that somebody agreed to this code."""
    _write(_allowed() | {code.digest: asdict(code)})


def withdraw(code: OwnCode) -> bool:
    """Forget it; whether it had been allowed."""
    allowed = _allowed()
    known = allowed.pop(code.digest, None) is not None
    if known:
        _write(allowed)
    return known


def needs_own_code(folder: Path, model_type: str) -> BadInputError:
    """Names the code, and where it came from, so that a person can look at it."""
    code = own_code(folder)
    origin = f" of {code.repository} at commit {code.commit}" if code.repository else ""
    if elsewhere := code_elsewhere(folder):
        what = f"Python code from elsewhere than its own folder ({', '.join(elsewhere[:3])}{origin})"
        return BadInputError(f"{folder} has {what}, which is never run; put what it needs into the folder itself.")
    what = f"its own Python code ({', '.join(list(code.files)[:5]) or 'which is not here'}{origin})"
    spec = f"{code.repository}@{code.commit}" if code.repository else folder
    return BadInputError(
        f"{folder} needs {what} for the type '{model_type}', which transformers does not know. It is not run unasked: "
        f"`awq-tui trust {spec}` shows it and asks."
    )


def _list() -> Path:
    return home() / "trusted_code.json"


def _allowed() -> dict[str, Any]:
    """What cannot be read allows nothing."""
    try:
        found = json.loads(_list().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(allowed: dict[str, Any]) -> None:
    _list().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_list(), json.dumps(allowed, indent=2).encode(), mode=0o600)
