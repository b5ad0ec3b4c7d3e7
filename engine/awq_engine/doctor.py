"""What this installation is and what it can do, for a person who wonders and for a bug report.

Nothing here changes anything or asks the network. Of a Hub token only its presence is told, never its value.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from awq_engine.decoding import prepare_decoding
from awq_engine.demo import MODEL
from awq_engine.disk import existing_parent
from awq_engine.errors import first_line
from awq_engine.format import size
from awq_engine.runtime import load_model, pick_device
from awq_engine.sanitize import redacted
from awq_engine.storage import runs_dir
from awq_kernels import reference
from awq_kernels.dispatch import BackendStatus, backends, choose, prepare
from awq_kernels.int_weight import IntWeight

PACKAGES = ("awq-tui", "torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface_hub", "textual")
CHECK_TOLERANCE = 1e-2
"""Relative error of a small product that bfloat16 explains."""


def doctor() -> dict[str, Any]:
    """The report: JSON types only; sizes in bytes, None for what is not known or not installed.

    Keys: `versions` (by package, and `python`), `platform`, `devices` (name, description, memory), `backends` (name,
    available, reason) on the device that `auto` picks, `auto` (device, backend, reason, and the outcome of a small
    product: `relative_error`, `problem`), `decoding` (which decoder runs the bundled model there), `disk` (the runs
    directory) and `hub` (cache, endpoint, offline, token).
    """
    device = pick_device("auto")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "devices": [_cpu(), *_accelerators()],
        "backends": [_as_dict(status) for status in backends(device)],
        "auto": _auto(device),
        "decoding": _decoding(device),
        "disk": _disk(),
        "hub": _hub(),
    }


def render(report: dict[str, Any]) -> str:
    """The report as lines of text, one fact each."""
    auto, disk, hub = report["auto"], report["disk"], report["hub"]
    lines = [f"{name:<16} {version or 'not installed'}" for name, version in report["versions"].items()]
    lines += [f"{'platform':<16} {report['platform']}", ""]
    for device in report["devices"]:
        memory = f"{size(device['memory_free'])} free of {size(device['memory_total'])}"
        lines.append(f"{device['name']:<16} {device['description']}, {memory}")
    lines += ["", f"On {auto['device']} the backends are:"]
    for status in report["backends"]:
        mark = "yes" if status["available"] else "no"
        lines.append(f"  {status['name']:<14} {mark:<4} {status['reason']}")
    lines.append(f"{'auto takes':<16} {auto['backend']}: {auto['reason']}")
    lines.append(f"{'its check':<16} {_outcome(auto)}")
    lines.append(f"{'decoding':<16} {report['decoding']}")
    lines += ["", f"{'runs':<16} {disk['runs_dir']}, {size(disk['free'])} free of {size(disk['total'])}"]
    lines.append(f"{'Hub cache':<16} {hub['cache']}")
    lines.append(f"{'Hub':<16} {'offline' if hub['offline'] else 'online'}, {hub['endpoint']}")
    lines.append(f"{'Hub token':<16} {'present' if hub['token'] else 'none (run `hf auth login` for gated models)'}")
    return "\n".join(lines)


def _outcome(auto: dict[str, Any]) -> str:
    if auto["problem"]:
        return f"FAILED: {auto['problem']}"
    return f"a small product is right, relative error {auto['relative_error']:.1e}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _as_dict(status: BackendStatus) -> dict[str, Any]:
    return {"name": status.name, "available": status.available, "reason": status.reason}


def _auto(device: torch.device) -> dict[str, Any]:
    status = choose("auto", device)
    error, problem = None, None
    try:
        error = _check(status.name, device)
        problem = None if error < CHECK_TOLERANCE else f"a small product is wrong by {error:.1e}; please report this"
    except Exception as failure:  # a compiler that is missing, a driver that is too old: the person must see it
        problem = f"{type(failure).__name__}: {failure}".splitlines()[0]
    picked = {"device": str(device), "backend": status.name, "reason": status.reason}
    return picked | {"relative_error": error, "problem": problem}


def _decoding(device: torch.device) -> str:
    """How the bundled model makes tokens here; our own decoder is checked against transformers' on the way."""
    try:
        return f"{prepare_decoding(load_model(MODEL, device=str(device))).decoding} for the bundled model"
    except Exception as failure:  # as above
        return f"FAILED for the bundled model: {first_line(failure)}"


def _check(backend: str, device: torch.device) -> float:
    """Relative error of one product of this backend against float64."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (64, 256), generator=generator, dtype=torch.uint8)
    zero_point = torch.randint(0, 16, (64, 2), generator=generator, dtype=torch.uint8)
    weight = IntWeight(q, torch.rand(64, 2, generator=generator).to(torch.float16), zero_point, 128)
    x = torch.randn(3, 256, generator=generator).to(torch.float16)
    expected = x.double() @ reference.dequantize(weight).double().T
    found = prepare(weight, backend, device)(x.to(device)).double().cpu()
    return float((found - expected).norm() / expected.norm())


def _cpu() -> dict[str, Any]:
    total, free = host_memory()
    described = f"{processor()}, {os.cpu_count()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return {"name": "cpu", "description": described, "memory_total": total, "memory_free": free}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Bytes in all and bytes that a new program could get."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None, None
    return total, free


def _accelerators() -> list[dict[str, Any]]:
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    found = []
    for index in range(torch.accelerator.device_count()):
        free, total = module.mem_get_info(index)
        name = module.get_device_name(index)
        found.append({"name": f"{kind.type}:{index}", "description": name, "memory_total": total, "memory_free": free})
    return found


def _disk() -> dict[str, Any]:
    folder = runs_dir()
    usage = shutil.disk_usage(existing_parent(folder))
    return {"runs_dir": str(folder), "free": usage.free, "total": usage.total}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    return {
        "cache": constants.HF_HUB_CACHE,
        "endpoint": redacted(constants.ENDPOINT),
        "offline": constants.is_offline_mode(),
        "token": get_token() is not None,
    }
