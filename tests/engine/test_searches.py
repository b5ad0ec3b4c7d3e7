"""Scale search, clip search, error feedback and drift correction against brute force."""

import pytest
import torch

from awq_engine.cholesky import damped_factor
from awq_engine.clip_search import choose_clip
from awq_engine.drift import correct_drift
from awq_engine.error_feedback import DAMPING, round_with_feedback_
from awq_engine.errors import BadInputError
from awq_engine.folds import Fold, FoldKind
from awq_engine.histogram import N_BINS, histogram, scale_statistics
from awq_engine.quantize import QParams, choose_qparams, group_ranges, round_to_grid, round_to_nearest
from awq_engine.scale_search import ScaleSearch, candidate_scale, choose_scale, choose_scales, relative_magnitude
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics, Moments
from awq_engine.workers import ALONE

SPEC = QuantSpec(4, 32, False)
OUT, IN = 24, 64


@pytest.fixture
def inputs() -> torch.Tensor:
    """float32 [512, 64], correlated, with two salient channels."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(IN, IN, generator=generator) / IN**0.5 + torch.eye(IN)
    x = torch.randn(512, IN, generator=generator) @ mix
    x[:, [5, 40]] *= 30
    return x


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(4)) * 0.1


def statistics(x: torch.Tensor) -> InputStatistics:
    return InputStatistics(x.T @ x / len(x), x.abs().mean(0), len(x))


def true_loss(x: torch.Tensor, rounded: torch.Tensor, weight: torch.Tensor) -> float:
    return float((x @ rounded.T - x @ weight.T).square().mean())


def test_gram_loss_is_the_output_error(inputs: torch.Tensor, weight: torch.Tensor):
    """tr(D G D^T) is the mean squared change of the outputs over all tokens."""
    rounded = round_to_nearest(weight, SPEC)

    assert statistics(inputs).output_mse([rounded - weight]) == pytest.approx(
        true_loss(inputs, rounded, weight), rel=1e-4
    )


def test_collected_statistics(inputs: torch.Tensor):
    """Moments add up over calls, and over processes as over calls."""
    moments, elsewhere = Moments(), Moments()
    moments.add(inputs[:100])
    elsewhere.add(inputs[100:])
    moments.merge(elsewhere)
    found = moments.means(IN, inputs.device)

    assert found.n_tokens == 512
    assert torch.allclose(found.gram, statistics(inputs).gram, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found.act_mean, inputs.abs().mean(0), rtol=1e-4)


def test_scale_search_protects_salient_channels(inputs: torch.Tensor, weight: torch.Tensor):
    """The chosen scale lifts the salient channels, and the loss it reports is the loss it makes."""
    fold = Fold("norm", ("linear",), FoldKind.NORM, IN)
    choice = choose_scale(ScaleSearch(fold, [weight], statistics(inputs), [SPEC]))
    rounded = round_to_nearest(weight * choice.channel_scale, SPEC) / choice.channel_scale

    assert choice.channel_scale[[5, 40]].min() > choice.channel_scale.median()
    assert choice.loss_after == pytest.approx(true_loss(inputs, rounded, weight), rel=1e-3)
    assert choice.loss_before == pytest.approx(true_loss(inputs, round_to_nearest(weight, SPEC), weight), rel=1e-3)
    assert choice.loss_after < 0.5 * choice.loss_before
    assert [alpha for alpha, _ in choice.curve] == pytest.approx([step / 20 for step in range(21)])
    assert min(loss for _, loss in choice.curve) == pytest.approx(choice.loss_after)


@pytest.mark.parametrize(("alpha", "duo"), [(0.25, False), (0.25, True), (1.0, True)])
def test_candidates_are_those_of_the_formula(alpha: float, duo: bool):
    """Loud channels get the larger scales, and with `duo` those of small weights; centred about one."""
    act_mean, w_mean = torch.tensor([4.0, 0.25, 1.0, 16.0]), torch.tensor([0.5, 0.125, 0.5, 0.25])
    raw = act_mean**alpha / ((w_mean ** (1 - alpha) + 1e-4) if duo else 1)
    found = candidate_scale(act_mean, w_mean, alpha, duo)

    assert torch.allclose(found, raw / (raw.max() * raw.min()).sqrt())
    assert float(found.max() * found.min()) == pytest.approx(1)


def test_magnitudes_are_relative_to_the_largest_of_their_group():
    """Averaged over all rows, whatever groups those of each linear have."""
    pairs = torch.tensor([[1.0, -2.0, 4.0, 1.0], [3.0, 3.0, 0.0, -1.0]])
    whole = torch.tensor([[1.0, 2.0, -4.0, 2.0]])
    found = relative_magnitude([(QuantSpec(4, 2, False), pairs), (QuantSpec(4, -1, False), whole)])

    assert torch.allclose(found, torch.tensor([1.75, 2.5, 2.0, 1.75]) / 3, atol=1e-4)


def test_the_curve_has_the_better_form_at_each_alpha(inputs: torch.Tensor, weight: torch.Tensor):
    """And the best of all is chosen; brute force with the search's own candidates."""
    stats, fold = statistics(inputs), Fold("norm", ("linear",), FoldKind.NORM, IN)
    choice = choose_scale(ScaleSearch(fold, [weight], stats, [SPEC]))
    w_mean = relative_magnitude([(SPEC, weight)])
    losses = {}
    for step in range(21):
        for duo in (False, True):
            scale = candidate_scale(stats.act_mean, w_mean, step / 20, duo)
            losses[step / 20, duo] = true_loss(inputs, round_to_nearest(weight * scale, SPEC) / scale, weight)
    curve = [min(losses[step / 20, False], losses[step / 20, True]) for step in range(21)]

    assert torch.equal(candidate_scale(stats.act_mean, w_mean, 0.0, False), torch.ones(IN))
    assert [loss for _, loss in choice.curve] == pytest.approx(curve, rel=1e-3)
    assert losses[choice.alpha, choice.duo] == pytest.approx(min(curve), rel=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_folds_are_searched_in_their_order(inputs: torch.Tensor, weight: torch.Tensor, count: int):
    searches = [
        ScaleSearch(Fold("norm", ("linear",), FoldKind.NORM, IN), [weight * (1 + n)], statistics(inputs), [SPEC])
        for n in range(count)
    ]
    found = list(choose_scales(searches, count, ALONE))

    assert [choice.loss_before for choice in found] == [choose_scale(search).loss_before for search in searches]


def test_identity_is_always_a_candidate(weight: torch.Tensor):
    """A weight that is on its grid already loses nothing, and the search leaves it alone."""
    exact = round_to_nearest(weight, SPEC)
    x = torch.randn(256, IN, generator=torch.Generator().manual_seed(5))
    fold = Fold("norm", ("linear",), FoldKind.NORM, IN)
    choice = choose_scale(ScaleSearch(fold, [exact], statistics(x), [SPEC]))

    assert choice.loss_after <= choice.loss_before
    assert choice.loss_before == pytest.approx(0, abs=1e-9)


def test_linears_that_share_a_scale_may_be_rounded_differently(inputs: torch.Tensor, weight: torch.Tensor):
    """The loss is taken over the outputs of all of them, each rounded as it will be."""
    specs = [SPEC, QuantSpec(3, 16, True)]
    halves = [weight[: OUT // 2], weight[OUT // 2 :]]
    fold = Fold("norm", ("a", "b"), FoldKind.NORM, IN)
    choice = choose_scale(ScaleSearch(fold, halves, statistics(inputs), specs))
    s = choice.channel_scale
    rounded = torch.cat([round_to_nearest(half * s, spec) / s for half, spec in zip(halves, specs, strict=True)])

    assert choice.loss_after == pytest.approx(true_loss(inputs, rounded, weight), rel=1e-3)
    assert choice.loss_after < choice.loss_before


def test_dead_channels_do_not_break_the_search(inputs: torch.Tensor, weight: torch.Tensor):
    """Channels that are never active get a finite scale."""
    inputs[:, 10:20] = 0
    fold = Fold("norm", ("linear",), FoldKind.NORM, IN)
    choice = choose_scale(ScaleSearch(fold, [weight], statistics(inputs), [SPEC]))

    assert torch.isfinite(choice.channel_scale).all()
    assert (choice.channel_scale > 0).all()


def test_shared_heads_share_their_scale():
    """A value head read by two query heads has one scale per channel: expand and reduce are consistent."""
    fold = Fold("v", ("o",), FoldKind.ROWS, width=8, repeat=2, head_dim=4)
    channels = torch.arange(8.0)

    assert fold.expand(channels).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert torch.equal(fold.reduce(fold.expand(channels)), channels)


def test_clip_never_loses(inputs: torch.Tensor, weight: torch.Tensor):
    """Full range is a candidate, so no group gets worse; an outlier weight on a quiet channel is clipped."""
    stats = statistics(inputs)
    weight[:, 7] = 0.7
    stats.gram[7] *= 1e-3
    stats.gram[:, 7] *= 1e-3
    qparams, clipped = choose_clip(weight, stats, SPEC)
    blockwise = InputStatistics(torch.block_diag(stats.gram[:32, :32], stats.gram[32:, 32:]), stats.act_mean, 1)
    after = blockwise.output_mse([round_to_grid(weight, qparams, SPEC) - weight])
    before = blockwise.output_mse([round_to_nearest(weight, SPEC) - weight])

    assert after < before
    assert clipped > 0


def test_ends_of_a_range_are_clipped_apart(inputs: torch.Tensor, weight: torch.Tensor):
    """An outlier at one end costs the other end nothing: no shared bound does as well."""
    weight[:, 7] = 0.7
    gram = torch.eye(IN)
    gram[7, 7] = 1e-3
    stats, spec = InputStatistics(gram, inputs.abs().mean(0), 1), QuantSpec(2, 32, False)

    def loss(qparams: QParams) -> float:
        return stats.output_mse([round_to_grid(weight, qparams, spec) - weight])

    low, high = group_ranges(weight, spec)
    bound = torch.maximum(high, -low)
    shares = [1 - 0.01 * step for step in range(90)]
    shared = [choose_qparams(torch.maximum(low, -s * bound), torch.minimum(high, s * bound), spec) for s in shares]
    qparams, clipped = choose_clip(weight, stats, spec)

    assert loss(qparams) < min(map(loss, shared))
    assert clipped > 0.5


def test_feedback_beats_plain_rounding_on_the_same_grid(
    inputs: torch.Tensor, weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Error feedback, damped as in the paper, lowers the output error, and every value stays on its group's grid."""
    monkeypatch.setattr("awq_engine.error_feedback.DAMPING", 0.01)
    stats = statistics(inputs)
    qparams = choose_qparams(*group_ranges(weight, SPEC), SPEC)
    rounded = round_with_feedback_(weight.clone(), stats, qparams, SPEC)
    plain = true_loss(inputs, round_to_grid(weight, qparams, SPEC), weight)

    assert true_loss(inputs, rounded, weight) < 0.6 * plain
    assert torch.equal(round_to_grid(rounded, qparams, SPEC), rounded)


@pytest.mark.parametrize("chunk", [128, 21, 1])
def test_feedback_is_gptq(inputs: torch.Tensor, weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch, chunk: int):
    """Column by column as in the paper: round, divide by U_ii of the inverse's factor, move the columns left."""
    monkeypatch.setattr("awq_engine.error_feedback.CHUNK", chunk)
    stats = statistics(inputs)
    qparams = choose_qparams(*group_ranges(weight, SPEC), SPEC)
    gram = stats.gram.double()
    gram += DAMPING * gram.diagonal().mean() * torch.eye(IN)
    order = torch.argsort(gram.diagonal(), descending=True)
    factor = torch.linalg.cholesky(torch.linalg.inv(gram[order][:, order]), upper=True)
    rest, expected = weight.double(), torch.empty_like(weight)
    for i, column in enumerate(order.tolist()):
        scale, zero = qparams.scale[:, column // 32], qparams.zero_point[:, column // 32]
        q = (rest[:, column] / scale).round().add(zero).clamp(0, SPEC.levels).sub(zero) * scale
        error = (rest[:, column] - q) / factor[i, i]
        expected[:, column] = q.float()
        rest[:, order[i:]] -= error[:, None] * factor[i, i:]
    found = round_with_feedback_(weight.clone(), stats, qparams, SPEC)

    assert (found == expected).float().mean() > 0.995  # a tie may fall the other way in single precision


def test_singular_gram_matrix_is_damped_until_it_factors():
    """What rounding made indefinite is damped more; what is not finite is refused."""
    gram = torch.diag(torch.tensor([1.0, 1.0, -0.5]))
    factor = damped_factor(gram, torch.full((3,), 0.01))

    assert torch.allclose(factor.T @ factor, gram + torch.eye(3), atol=1e-6)
    with pytest.raises(BadInputError, match="not finite"):
        damped_factor(torch.full((3, 3), torch.nan), torch.ones(3))


def test_drift_correction_recovers_the_original_outputs(inputs: torch.Tensor, weight: torch.Tensor):
    """When the present inputs are a linear image of the original ones, the corrected weight undoes the image."""
    generator = torch.Generator().manual_seed(6)
    image = torch.eye(IN) + 0.05 * torch.randn(IN, IN, generator=generator)
    present = inputs @ image
    corrected = correct_drift(weight, statistics(present), weight @ inputs.T @ present / len(inputs))
    target = inputs @ weight.T

    assert (present @ corrected.T - target).square().mean() < 0.1 * (present @ weight.T - target).square().mean()


def test_drift_correction_leaves_quiet_channels_their_range(inputs: torch.Tensor, weight: torch.Tensor):
    """A channel that hardly speaks could only help with weights that widen the range of its whole group."""
    present = inputs.clone()
    present[:, 3] = 1e-3 * (present[:, 3] + inputs[:, 4])
    corrected = correct_drift(weight, statistics(present), weight @ inputs.T @ present / len(inputs))

    assert corrected[:, 3].abs().max() < 3 * weight.abs().max()


def test_histogram_and_statistics():
    """Counts cover every channel; shares are relative to the mean."""
    scale = torch.tensor([0.1] * 5 + [1.0] * 90 + [10.0] * 5)
    found, stats = histogram(scale), scale_statistics(scale)

    assert len(found["counts"]) == N_BINS
    assert sum(found["counts"]) == 100
    assert (found["low"], found["high"]) == pytest.approx((-1, 1), abs=1e-6)
    assert stats["share_above_5x"] == pytest.approx(0.05)
    assert stats["share_below_half"] == pytest.approx(0.05)
    assert stats["max_over_mean"] == pytest.approx(10 / 1.405, rel=1e-3)
    assert sum(histogram(torch.ones(7))["counts"]) == 7
