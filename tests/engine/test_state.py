"""What a journal means: phases, layers, time, and a life with interruptions."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_engine import events as e
from awq_engine.state import Phase, RunState, reduce, replay
from tests.engine.journals import LINEARS, RESULT, block, planned, quantized, records, scaled, started, whole_run


def test_phases_follow_each_other() -> None:
    state, phases = RunState(), []
    for record in records(whole_run()):
        state = reduce(state, record)
        if not phases or phases[-1] is not state.phase:
            phases.append(state.phase)
    assert phases == [Phase.STARTING, Phase.CALIBRATING, Phase.QUANTIZING, Phase.WRITING, Phase.DONE]
    assert state.finished
    assert state.result == RESULT


def test_fraction_only_grows_and_ends_at_one() -> None:
    state, fractions = RunState(), []
    for record in records(whole_run()):
        state = reduce(state, record)
        fractions.append(state.fraction())
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert 0.98 in fractions


def test_what_comes_after_the_last_block_is_the_head() -> None:
    state = replay(records(whole_run()))
    assert [state.unit(0), state.unit(state.n_blocks)] == [f"block 1/{state.n_blocks}", "head"]


def test_layers_know_their_scale_and_their_losses() -> None:
    state = replay(records(whole_run()))
    first, second = state.layers[0, LINEARS[0]], state.layers[0, LINEARS[1]]
    assert (first.role, second.role) == ("q_proj", "down_proj")
    assert first.scale == scaled(0, LINEARS[0])
    assert second.scale is None
    assert first.loss_ratio == pytest.approx(0.25)


def test_only_accepted_folds_count() -> None:
    state = replay(records(whole_run()))
    assert [fold.producer for fold in state.folds] == ["norm", "norm"]


def test_block_begun_anew_forgets_what_the_dead_process_found() -> None:
    half = [*whole_run()[:4], *block(0)[:-2], e.BlockFellBack(0, "worse", 1.0, 2.0)]
    state = replay(records([*half, started(), planned(), e.BlockStarted(0, "model.layers.0")]))
    assert state.folds == ()
    assert state.fallbacks == ()
    assert all(layer.quantized is None and layer.scale is None for layer in state.layers.values())


def test_resumed_run_keeps_its_blocks_and_its_time() -> None:
    first = [started(), planned(), *block(0), e.RunCancelled(1)]
    state = replay(records(first))
    assert state.phase is Phase.CANCELLED
    worked = len(first) - 1
    assert state.elapsed(now=10_000.0) == worked
    later = e.Record(len(first) + 1, 5000.0, started(resumed_blocks=1))
    state = reduce(state, later)
    assert (state.phase, list(state.blocks)) == (Phase.STARTING, [0])
    assert state.elapsed(now=5007.0) == worked + 7


def test_failure_is_forgotten_when_the_run_goes_on() -> None:
    state = replay(records([started(), e.RunFailed("no disk", 3)]))
    assert state.phase is Phase.FAILED
    assert state.error == e.RunFailed("no disk", 3)
    assert replay(records([started(), e.RunFailed("no disk", 3), started()])).error is None


def test_same_warning_is_kept_once() -> None:
    assert replay(records([e.Warned("a"), e.Warned("b"), e.Warned("a")])).warnings == ("a", "b")


def test_download_has_its_phase() -> None:
    state = replay(records([started(), e.DownloadProgress(1, 10, "org/m")]))
    assert state.phase is Phase.DOWNLOADING


def test_eta_counts_the_blocks_left_and_shrinks_while_one_is_worked_on() -> None:
    done = replay(records([started(), planned(4), *block(0, seconds=10.0)]))
    assert done.updated is not None
    assert done.eta(done.updated) == 30
    running = reduce(done, e.Record(99, 200.0, e.BlockStarted(1, "model.layers.1")))
    assert [running.eta(200.0 + gone) for gone in (0, 4, 10, 60)] == [30, 26, 20, 20]


def test_eta_is_unknown_before_the_first_block_and_after_the_end() -> None:
    assert replay(records([started(), planned()])).eta(0.0) is None
    assert replay(records(whole_run())).eta(0.0) is None


def test_layer_that_was_not_planned_is_shown_all_the_same() -> None:
    state = replay(records([started(), quantized(7, "extra")]))
    assert state.layers[7, "extra"].quantized is not None


@given(st.data())
def test_any_order_of_events_is_reduced(data: st.DataObject) -> None:
    """A journal with skipped lines gives events without their forerunners."""
    events = data.draw(st.lists(st.sampled_from(whole_run()), max_size=30))
    state = replay(records(events))
    assert 0 <= state.fraction() <= 1
    assert state.elapsed(1e9) >= 0
    eta = state.eta(1e9)
    assert eta is None or eta >= 0
    assert state.last_seq == len(events)


def test_replay_is_the_same_in_any_number_of_steps() -> None:
    history = records(whole_run())
    state = RunState()
    for record in history:
        state = reduce(state, record)
    assert state == replay(history)


def test_a_state_that_was_handed_out_stays_as_it_is() -> None:
    history = records(whole_run())
    states = [RunState()]
    for record in history:
        states.append(reduce(states[-1], record))
    assert states[:-1] == [replay(history[:count]) for count in range(len(history))]


def test_one_more_linear_costs_the_same_however_many_there_are() -> None:
    """An event may copy what is known of its own block, not of all blocks."""
    names = [f"experts.{number}" for number in range(20)]
    plan = [{"block": b, "name": n, "out_features": 8, "in_features": 8} for b in range(40) for n in names]
    before = replay(records([started(), dataclasses.replace(planned(), linears=plan)]))
    after = reduce(before, e.Record(3, 9.0, quantized(7, names[3])))
    changed = [key for key in before.layers if before.layers[key] is not after.layers[key]]
    assert changed == [(7, names[3])]
    assert list(after.layers) == list(before.layers) == [(b, n) for b in range(40) for n in names]
    assert all(after.layers.of_block(b) is before.layers.of_block(b) for b in range(40) if b != 7)


@pytest.mark.parametrize(
    ("losses", "ratio"), [({}, None), ({"rounding": 0.0}, None), ({"rounding": 2.0, "scales": 3.0, "clips": 0.5}, 0.25)]
)
def test_the_ratio_of_losses_is_that_of_the_last_to_the_first(losses: dict[str, float], ratio: float | None) -> None:
    layer = replay(records(whole_run())).layers[0, LINEARS[0]]
    assert layer.quantized is not None
    changed = dataclasses.replace(layer, quantized=dataclasses.replace(layer.quantized, losses=losses))
    assert changed.loss_ratio == ratio


def test_a_run_of_which_nothing_is_known() -> None:
    state = RunState()
    assert (state.phase, state.ahead, state.fraction(), state.finished, state.result) == (
        Phase.STARTING, 0, 0.0, False, None
    )  # fmt: skip


def test_a_pause_is_no_time_of_the_run_or_of_its_block() -> None:
    """One event a second: the block begins at 102, lies still from 103 to 105, and it is 106."""
    told = [started(), planned(), e.BlockStarted(0, "b"), e.Paused(), e.Warned("still"), e.Continued(), e.Warned("on")]
    state = replay(records(told))
    assert (state.started, state.block_started, state.paused) == (102.0, 104.0, None)
    assert state.elapsed(106.0) == 4.0


def test_the_end_of_a_pause_that_never_began_changes_nothing() -> None:
    before = replay(records([started(), planned()]))
    after = replay(records([started(), planned(), e.Continued()]))
    assert (after.started, after.paused) == (before.started, None)


def test_a_failure_is_forgotten_when_the_resumed_run_ends_well() -> None:
    state = replay(records([started(), e.RunFailed("The disk is full.", 3), started(), e.RunFinished(RESULT)]))
    assert (state.phase, state.error) == (Phase.DONE, None)


def test_calibration_is_kept_and_its_progress_is_a_phase() -> None:
    ready = e.CalibrationReady("builtin", 128, 256, 32768, 5, "a sample", [], 99)
    state = replay(records([started(), ready, e.PhaseProgress("calibrating", 1, 2)]))
    assert (state.calibration, state.phase) == (ready, Phase.CALIBRATING)
