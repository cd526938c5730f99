"""A simulated cascade follows its rule, example by example."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import metrics
from keras_committee.evaluation.calibration import fit_temperature
from keras_committee.evaluation.cascade import NO_EXIT, CascadeConfig, MemberPredictions, simulate_cascade
from keras_committee.layers import CONFIDENCE_MEASURES, ArithmeticMean, MajorityVote, WeightedGeometricMean
from keras_committee.selection import Stage

MFLOPS = (2.0, 7.0, 3.0, 5.0)


def member_predictions(seed=3, examples=40, members=4, classes=3, head="geometric_mean"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    logits = rng.normal(0, 1.3, (examples, members, classes))
    logits[np.arange(examples), :, labels] += 1.1
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return MemberPredictions(log_probs.astype("float32"), labels, MFLOPS[:members], head)


def config(order=(2, 0, 3, 1), sizes=(1, 2, 4), thresholds=(0.7, 0.6), confidence="max_probability"):
    return CascadeConfig(order=order, sizes=sizes, thresholds=thresholds, confidence=confidence)


def geometric_mean(log_probs):
    product = np.exp(log_probs.astype("float64")).prod(axis=0) ** (1 / len(log_probs))
    return product / product.sum()


def one_by_one(predictions, cascade):
    """Probabilities and members used, for one example after another."""
    for log_probs in predictions.log_probabilities:
        for size, threshold in zip(cascade.sizes, (*cascade.thresholds, 0.0), strict=True):
            probabilities = geometric_mean(log_probs[list(cascade.order[:size])])
            if probabilities.max() >= threshold:
                break
        yield probabilities, size


def test_each_example_stops_where_its_confidence_suffices():
    predictions, cascade = member_predictions(), config()
    run = simulate_cascade(predictions, cascade)
    probabilities, used = map(np.array, zip(*one_by_one(predictions, cascade), strict=True))
    np.testing.assert_allclose(run.probabilities, probabilities, rtol=1e-5)
    np.testing.assert_array_equal(run.members_used, used)
    assert set(used) == {1, 2, 4}


def test_stages_that_no_example_leaves_or_passes_are_left_out_with_their_windows():
    full = CascadeConfig(
        order=(0, 1, 2, 3), sizes=(1, 2, 3, 4), thresholds=(NO_EXIT, NO_EXIT, 0.5), lower_thresholds=(0.0, 0.2, 0.5)
    )
    kept = full.without_unused_stages()
    assert (kept.order, kept.sizes, kept.thresholds, kept.lower_thresholds) == ((0, 1, 2), (2, 3), (NO_EXIT,), (0.2,))
    assert kept.stages() == (Stage(members=2, threshold=NO_EXIT, lower_threshold=0.2), Stage(members=3, threshold=None))


def test_the_cost_is_that_of_the_members_used():
    run = simulate_cascade(member_predictions(), config())
    costs = {1: 3.0, 2: 5.0, 4: 17.0}
    assert run.mflops == pytest.approx(np.mean([costs[used] for used in run.members_used]))
    assert run.worst_mflops == 17.0
    assert simulate_cascade(member_predictions(), config(thresholds=(0.7, 0.0))).worst_mflops == 5.0


def test_each_exit_is_scored_on_the_examples_it_answered():
    predictions = member_predictions()
    run = simulate_cascade(predictions, config())
    for stage, size in zip(run.exits, (1, 2, 4), strict=True):
        here = run.members_used == size
        assert (stage.members, stage.rate) == (size, pytest.approx(here.mean()))
        scores = metrics.classification_metrics(run.probabilities[here], predictions.labels[here])
        assert (stage.accuracy, stage.nll, stage.ece) == (scores["accuracy"], scores["nll"], scores["ece"])
    assert run.scores == metrics.classification_metrics(run.probabilities, predictions.labels)
    assert sum(stage.rate for stage in run.exits) == pytest.approx(1.0)


def test_an_exit_without_examples_has_no_accuracy():
    (first, second, last) = simulate_cascade(member_predictions(), config(thresholds=(2.0, 0.0))).exits
    assert (first.rate, second.rate, last.rate) == (0.0, 1.0, 0.0)
    assert (first.accuracy, first.nll, first.ece) == (None, None, None)


seeds, kinds = st.integers(0, 1000), st.sampled_from(CONFIDENCE_MEASURES)
heads = st.sampled_from(
    ["geometric_mean", ArithmeticMean(), MajorityVote(), WeightedGeometricMean((0.2, 0.1, 0.4, 0.3))]
)
orders = st.permutations(range(4)).map(tuple)


@settings(max_examples=25, deadline=None)
@given(seeds, kinds, heads, orders)
def test_thresholds_of_zero_are_the_first_member_and_above_one_the_full_committee(seed, kind, head, order):
    predictions = member_predictions(seed, 12, head=head)
    first = simulate_cascade(predictions, config(order, thresholds=(0.0, 0.0), confidence=kind))
    np.testing.assert_array_equal(first.probabilities, predictions.probabilities(order[:1]))
    assert first.mflops == first.worst_mflops == MFLOPS[order[0]]
    full = simulate_cascade(predictions, config(order, thresholds=(1.01, 1.01), confidence=kind))
    np.testing.assert_array_equal(full.probabilities, predictions.probabilities(range(4)))
    assert full.mflops == pytest.approx(sum(MFLOPS))


@settings(max_examples=25, deadline=None)
@given(seeds, heads, orders)
def test_the_order_of_members_does_not_change_the_output(seed, head, order):
    predictions = member_predictions(seed, 12, head=head)
    np.testing.assert_array_equal(predictions.probabilities(order), predictions.probabilities(range(4)))


@settings(max_examples=25, deadline=None)
@given(seeds, kinds, st.floats(0, 1), st.floats(0, 1))
def test_higher_thresholds_use_no_fewer_members(seed, kind, one, other):
    low, high = sorted((one, other))
    runs = [
        simulate_cascade(member_predictions(seed, 12), config(thresholds=(t, 0.6), confidence=kind))
        for t in (low, high)
    ]
    assert (runs[0].members_used <= runs[1].members_used).all()


def test_uniform_predictions_answer_at_a_threshold_of_zero():
    undecided = MemberPredictions(np.full((5, 2, 7), -np.log(7.0), "float32"), np.zeros(5, int), (1.0, 1.0))
    for kind in CONFIDENCE_MEASURES:
        run = simulate_cascade(undecided, CascadeConfig(order=(0, 1), sizes=(1, 2), thresholds=(0.0,), confidence=kind))
        assert run.members_used.tolist() == [1] * 5


def test_scores_are_the_metrics_example_by_example():
    predictions = member_predictions()
    for objective, sign in (("accuracy", 1), ("nll", -1), ("brier", -1)):
        mean = metrics.classification_metrics(predictions.probabilities([1, 3]), predictions.labels)[objective]
        assert predictions.scores([1, 3], objective).mean() == pytest.approx(sign * mean, rel=1e-5)
    with pytest.raises(ValueError, match=r"accuracy, nll or brier\. Received: 'ece'"):
        predictions.scores([0], "ece")


def test_smoothed_accuracy_is_half_of_the_label_and_half_of_the_calibrated_probability_by_the_committee():
    predictions, committee = member_predictions(examples=200), (0, 3)
    smoothed = predictions.with_smoothed_accuracy(committee)
    temperature = fit_temperature(
        np.log([geometric_mean(each[list(committee)]) for each in predictions.log_probabilities]), predictions.labels
    )
    answers = {members: [] for members in ((1,), (0, 2, 3), committee)}
    calibrated = []
    for log_probs in predictions.log_probabilities:
        powers = geometric_mean(log_probs[list(committee)]) ** (1 / temperature)
        calibrated.append(powers / powers.sum())
        for members, found in answers.items():
            found.append(geometric_mean(log_probs[list(members)]).argmax())
    accuracy = np.mean(np.array(answers[committee]) == predictions.labels)
    excess = np.mean([row.max() for row in calibrated]) - accuracy
    for members, found in answers.items():
        rows = zip(found, predictions.labels, calibrated, strict=True)
        expected = [((answer == label) + row[answer] - excess) / 2 for answer, label, row in rows]
        np.testing.assert_allclose(smoothed.scores(members, "accuracy"), expected, atol=1e-6)
        np.testing.assert_array_equal(smoothed.scores(members, "nll"), predictions.scores(members, "nll"))
    assert smoothed.scores(committee, "accuracy").mean() == pytest.approx(accuracy, abs=1e-12)
    part = smoothed.subset(np.arange(50, 90))
    np.testing.assert_array_equal(part.scores([1], "accuracy"), smoothed.scores([1], "accuracy")[50:90])


def test_a_config_gives_the_stages_of_a_selection():
    assert config().stages() == tuple(
        Stage(members=size, threshold=threshold) for size, threshold in ((1, 0.7), (2, 0.6), (4, None))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (1, 3)}, r"to all 4 members\. Received: \[1, 3\]"),
        ({"sizes": (2, 2, 4)}, r"stages must increase"),
        ({"thresholds": (0.7,)}, r"one number for each of the 3 stages except the last\. Received: \[0\.7\]"),
        ({"thresholds": (0.7, float("nan"))}, r"thresholds must hold"),
        ({"confidence": "luck"}, r"Received: 'luck'"),
    ],
)
def test_an_invalid_config_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_predictions_labels_and_costs_must_match():
    log_probs = np.log(np.full((4, 2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"labels of shape \(5,\), 2 costs"):
        MemberPredictions(log_probs, np.zeros(5, int), (1, 1))
    with pytest.raises(ValueError, match=r"\(examples, members, classes\), none of them 0\. Received: shape \(4, 2\)"):
        MemberPredictions(log_probs[:, :, 0], np.zeros(4, int), (1, 1))


@pytest.mark.parametrize(
    ("thresholds", "sizes"),
    [((0.0, 0.6), (1,)), ((0.7, 0.0), (1, 2)), ((2.0, 0.6), (2, 4)), ((0.7, 2.0), (1, 4)), ((0.7, 0.6), (1, 2, 4))],
)
def test_removing_unused_stages_keeps_every_output(thresholds, sizes):
    predictions, whole = member_predictions(), config(thresholds=thresholds)
    trimmed = whole.without_unused_stages()
    assert (trimmed.sizes, trimmed.order) == (sizes, whole.order[: sizes[-1]])
    before, after = simulate_cascade(predictions, whole), simulate_cascade(predictions, trimmed)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    np.testing.assert_array_equal(after.members_used, before.members_used)
