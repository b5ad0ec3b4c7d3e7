"""What may be written over, and whether it fits."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Method, RunConfig
from awq_engine.errors import ResourceError, UsageError
from awq_engine.estimate import estimate
from awq_engine.output import check_output, check_run, default_output
from tests.engine.safetensors_files import model_folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def test_default_name_says_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output("Tiny") == tmp_path / "Tiny-AWQ-W4-G128"
    options = {"group_size": -1, "symmetric": True, "method": Method.RTN}
    assert default_output("Tiny", target_bpw=4.25).name == "Tiny-AWQ-4.25bpw"
    assert default_output("Tiny", **options).name == "Tiny-RTN-W4-row-sym"  # type: ignore[arg-type]


def test_new_folder_is_fine_and_nothing_is_made(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "out", None, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    output = model_folder(tmp_path / "out")
    with pytest.raises(UsageError, match=r"exists already; choose another with -o, or replace it with --overwrite"):
        check_output(output, None, overwrite=False)
    check_output(output, None, overwrite=True)


def test_overwrite_never_touches_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "precious.txt"):
        with pytest.raises(UsageError, match="is not a model folder, so --overwrite does not touch it"):
            check_output(output, None, overwrite=True)


def test_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", None, overwrite=True)


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model_folder(tmp_path / "model"))
    with pytest.raises(UsageError, match="is not a model folder"):
        check_output(tmp_path / "link", None, overwrite=True)


def test_output_cannot_replace_the_model_or_a_folder_around_it(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "models" / "tiny")
    for output in (model, tmp_path / "models", tmp_path / "models" / ".." / "models" / "tiny"):
        with pytest.raises(UsageError, match="would replace the model itself"):
            check_output(output, model, overwrite=True)
    check_output(model / "quantized", model, overwrite=False)


def test_output_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder that can be written to"):
        check_output(tmp_path / "file" / "out", None, overwrite=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="is not a folder that can be written to"):
        check_output(tmp_path / "out", None, overwrite=False)


def test_blocks_and_output_must_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(model_folder(tmp_path / "model"))
    config = RunConfig(str(checkpoint.path), str(tmp_path / "out"))
    forecast = estimate(checkpoint, config)
    usage = namedtuple("usage", "free")
    needed = forecast.bytes_after + forecast.blocks_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed))
    check_run(config, checkpoint, forecast)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(needed - 1))
    with pytest.raises(ResourceError, match="Not enough disk space for the output and the finished blocks"):
        check_run(config, checkpoint, forecast)
