"""Per-layer rows are the same from a live run and from the report it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_engine.errors import BadInputError
from awq_engine.report import (
    REPORT_NAME,
    awq_loss,
    build_report,
    layer_rows,
    outliers,
    read_report,
    rows_of_report,
    summarize_roles,
)
from awq_engine.state import RunState, replay
from tests.engine.journals import LINEARS, RESULT, planned, quantized, records, scaled, started, whole_run


@pytest.fixture
def state() -> RunState:
    return replay(records(whole_run()))


def test_report_gives_back_the_rows_of_the_run(state: RunState, tmp_path: Path) -> None:
    (tmp_path / REPORT_NAME).write_text(json.dumps(build_report(state, RESULT)))
    report = read_report(tmp_path)
    assert rows_of_report(report) == layer_rows(state)
    assert report["result"] == RESULT
    assert report["versions"] == {"torch": "2.13.0"}


def test_row_holds_scale_statistics_only_where_a_fold_reached(state: RunState) -> None:
    first, second, *_ = layer_rows(state)
    assert (first.name, first.max_over_mean, first.producer) == (LINEARS[0], 3.0, "norm")
    assert (second.name, second.max_over_mean, second.producer) == (LINEARS[1], None, None)
    assert (first.loss_rounding, awq_loss(first), first.loss_final) == (4e-4, 1.5e-4, 1e-4)
    assert first.weight_change == pytest.approx(0.2)
    assert first.output_change == pytest.approx(-0.75)


def test_layers_still_to_be_done_have_no_row() -> None:
    assert layer_rows(replay(records([started(), planned(), quantized(0, LINEARS[0])])))[0].block == 0
    assert layer_rows(replay(records([started(), planned()]))) == []


def test_roles_are_summarized_as_means() -> None:
    events = [
        started(),
        planned(),
        *(quantized(block, LINEARS[0], rounding) for block, rounding in ((0, 2e-4), (1, 6e-4))),
    ]
    (summary,) = summarize_roles(layer_rows(replay(records(events))))
    assert (summary.role, summary.layers) == ("q_proj", 2)
    assert summary.loss_rounding == pytest.approx(4e-4)
    assert summary.loss_ratio == pytest.approx(0.25)
    assert summary.max_over_mean is None


def test_outlier_stands_out_among_its_own_kind() -> None:
    events = [started(), planned(5)]
    for block in range(5):
        events += [scaled(block, LINEARS[0], max_over_mean=20.0 if block == 3 else 5.0), quantized(block, LINEARS[0])]
    assert outliers(layer_rows(replay(records(events)))) == {(3, LINEARS[0])}


def test_rounding_without_loss_has_no_ratio() -> None:
    (row,) = layer_rows(replay(records([started(), quantized(0, "a", rounding=0.0)])))
    assert (row.loss_ratio, row.output_change) == (None, None)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"layers": {}}', b"\xff"])
def test_damaged_or_missing_report_is_bad_input(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / REPORT_NAME).write_bytes(content)
    with pytest.raises(BadInputError, match=REPORT_NAME):
        read_report(tmp_path)


@pytest.mark.parametrize("layers", [[1], [{}], [{"block": 1}], [None]])
def test_report_with_other_rows_is_bad_input(layers: list[object]) -> None:
    with pytest.raises(BadInputError, match="lacks statistics"):
        rows_of_report({"layers": layers})


def test_statistics_of_a_newer_version_are_ignored(state: RunState) -> None:
    report = build_report(state, RESULT)
    for row in report["layers"]:
        row["novelty"] = 1
    assert rows_of_report(report) == layer_rows(state)
