"""Metrics equal their definitions, scikit-learn and SciPy, and plain loops."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from keras_committee import metrics
from keras_committee.metrics.intervals import accuracy_loss_interval, examples_for_loss, few_images_note


def some_probabilities(seed, examples=211, classes=5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return softmax(2 * rng.normal(size=(examples, classes)), axis=-1).astype(dtype), rng.integers(0, classes, examples)


def member_probabilities(seed, examples=97, members=3, classes=4):
    """Members that share a part of their logits and are more often right than wrong, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    shared = rng.normal(size=(examples, 1, classes)) + 1.5 * np.eye(classes)[labels][:, None]
    return softmax(shared + rng.normal(size=(examples, members, classes)), axis=-1), labels


def one_member(seed, examples=211):
    probabilities, labels = member_probabilities(seed, examples)
    return probabilities[:, 0], labels


TWO = np.array([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]]), np.array([1, 2])


def test_the_metrics_of_two_examples_by_hand():
    assert metrics.accuracy(*TWO) == 0.5
    assert metrics.nll(*TWO) == pytest.approx(-(np.log(0.7) + np.log(0.2)) / 2)
    assert metrics.brier(*TWO) == pytest.approx((0.04 + 0.09 + 0.01 + 0.25 + 0.09 + 0.64) / 2)
    assert metrics.ece(*TWO) == pytest.approx((0.3 + 0.5) / 2)


def test_the_summary_has_the_four_metrics_as_python_floats():
    summary = metrics.classification_metrics(*TWO)
    assert summary == {
        "accuracy": metrics.accuracy(*TWO),
        "nll": metrics.nll(*TWO),
        "ece": metrics.ece(*TWO),
        "brier": metrics.brier(*TWO),
    }
    assert {type(value) for value in summary.values()} == {float}


@pytest.mark.parametrize("seed", [2, 7])
def test_accuracy_nll_and_brier_are_those_of_scikit_learn(seed):
    probabilities, labels = some_probabilities(seed)
    one_hot = np.eye(5)[labels]
    per_class = [sklearn.metrics.brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(5)]
    assert metrics.accuracy(probabilities, labels) == sklearn.metrics.accuracy_score(labels, probabilities.argmax(1))
    assert metrics.nll(probabilities, labels) == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    assert metrics.brier(probabilities, labels) == pytest.approx(sum(per_class))


def test_the_confusion_matrix_is_that_of_scikit_learn():
    probabilities, labels = some_probabilities(3)
    expected = sklearn.metrics.confusion_matrix(labels, probabilities.argmax(1), labels=range(5))
    np.testing.assert_array_equal(metrics.confusion_matrix(probabilities, labels), expected)


LABEL_DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i2"]


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_labels_of_every_integer_dtype_give_the_same_results(dtype):
    probabilities, labels = some_probabilities(3, examples=400, classes=100)
    functions = (metrics.classification_metrics, metrics.confusion_matrix, metrics.adaptive_ece)
    for function in (*functions, metrics.reliability_curve):
        np.testing.assert_equal(function(probabilities, labels.astype(dtype)), function(probabilities, labels))
    expected = sklearn.metrics.confusion_matrix(labels, probabilities.argmax(1), labels=range(100))
    np.testing.assert_array_equal(metrics.confusion_matrix(probabilities, labels.astype(dtype)), expected)
    members, labels = member_probabilities(4)
    functions = (metrics.double_fault, metrics.q_statistic, metrics.error_correlation)
    for function in (*functions, metrics.ambiguity, metrics.log_ambiguity):
        np.testing.assert_equal(function(members, labels.astype(dtype)), function(members, labels))


def ece_by_loop(probabilities, labels, bins):
    """The definition of Guo et al., bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        share = inside.sum() / len(labels)
        gap = abs(right[inside].mean() - confidence[inside].mean()) if inside.any() else 0.0
        total += share * gap
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_ece_is_the_loop_over_right_closed_bins(bins):
    probabilities, labels = some_probabilities(3)
    assert metrics.ece(probabilities, labels, bins=bins) == pytest.approx(ece_by_loop(probabilities, labels, bins))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = np.array([[0.75, 0.25], [0.75, 0.25], [0.8, 0.2]])
    labels = np.array([0, 0, 1])
    # 0.75 lies in (0.5, 0.75], 0.8 in (0.75, 1].
    assert metrics.ece(probabilities, labels, bins=4) == pytest.approx(((2 - 1.5) + (0.8 - 0)) / 3)


def test_a_certain_mistake_costs_a_finite_nll():
    assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(1e-12))
    assert metrics.brier(np.array([[1.0, 0.0]]), np.array([1])) == 2.0


def test_float32_is_averaged_without_losing_digits():
    probabilities, labels = some_probabilities(5, examples=20_000, dtype=np.float32)
    exact = -np.mean(np.log(probabilities.astype(np.float64)[np.arange(20_000), labels]))
    assert metrics.nll(probabilities, labels) == pytest.approx(exact, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 7), st.integers(1, 40))
def test_the_metrics_do_not_depend_on_the_order_of_examples_or_classes(seed, classes, examples):
    probabilities, labels = some_probabilities(seed, examples, classes)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(examples), rng.permutation(classes)
    shuffled = probabilities[rows][:, columns]
    renamed = np.argsort(columns)[labels[rows]]
    assert metrics.classification_metrics(shuffled, renamed) == pytest.approx(
        metrics.classification_metrics(probabilities, labels)
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 7), st.integers(1, 40))
def test_the_metrics_stay_in_their_ranges(seed, classes, examples):
    summary = metrics.classification_metrics(*some_probabilities(seed, examples, classes))
    assert 0 <= summary["accuracy"] <= 1
    assert 0 <= summary["ece"] <= 1
    assert 0 <= summary["brier"] <= 2
    assert 0 <= summary["nll"] <= -np.log(1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000))
def test_a_certain_correct_prediction_has_no_error(seed):
    labels = some_probabilities(seed)[1]
    assert metrics.classification_metrics(np.eye(5)[labels], labels) == {
        "accuracy": 1.0,
        "nll": 0.0,
        "ece": 0.0,
        "brier": 0.0,
    }


def test_disagreement_and_double_fault_are_the_loops_over_pairs():
    probabilities, labels = member_probabilities(4)
    top = probabilities.argmax(axis=2)
    for i in range(3):
        for j in range(3):
            differ = np.mean([top[n, i] != top[n, j] for n in range(97)])
            both_wrong = np.mean([top[n, i] != labels[n] and top[n, j] != labels[n] for n in range(97)])
            assert metrics.disagreement(probabilities)[i, j] == pytest.approx(differ)
            assert metrics.double_fault(probabilities, labels)[i, j] == pytest.approx(both_wrong)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_disagreement_is_a_distance_and_the_diagonal_of_double_fault_the_error(seed, members):
    probabilities, labels = member_probabilities(seed, members=members)
    disagreement = metrics.disagreement(probabilities)
    errors = [1 - metrics.accuracy(probabilities[:, member], labels) for member in range(members)]
    assert np.array_equal(disagreement, disagreement.T)
    assert not disagreement.diagonal().any()
    assert metrics.double_fault(probabilities, labels).diagonal() == pytest.approx(errors)


def test_identical_members_do_not_disagree():
    probabilities, _ = member_probabilities(6)
    assert metrics.disagreement(probabilities[:, [0, 0]]).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert metrics.disagreement(probabilities)[0, 1] > 0.1


FINE, LABELS = some_probabilities(8, examples=6, classes=3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        (FINE[0], LABELS, r"shape \(examples, classes\).*Received: shape \(3,\)"),
        (FINE[:0], LABELS[:0], r"none of them 0\. Received: shape \(0, 3\)"),
        ((FINE > 0.5).astype(int), LABELS, "probabilities must be floats. Received: dtype int64"),
        (np.where(FINE[2, 1] == FINE, np.nan, FINE), LABELS, "hold no NaN"),
        (FINE * 1.01, LABELS, "sum to 1 over the classes"),
        (FINE - 0.2 * np.array([1, -1, 0]), LABELS, r"must lie in \[0, 1\]"),
        (FINE, LABELS[:5], r"labels must be integers of shape \(6,\)\. Received: int64 of shape \(5,\)"),
        (FINE, LABELS.astype(float), r"labels must be integers of shape \(6,\)\. Received: float64"),
        (FINE, LABELS - 3, r"labels must lie in 0\.\.2\. Received: -"),
        (FINE, LABELS + 3, r"labels must lie in 0\.\.2\. Received: "),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [
        metrics.accuracy,
        metrics.nll,
        metrics.brier,
        metrics.ece,
        metrics.classification_metrics,
        metrics.confusion_matrix,
    ],
)
def test_invalid_probabilities_or_labels_are_rejected(metric, probabilities, labels, expected):
    with pytest.raises(ValueError, match=expected):
        metric(probabilities, labels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_probabilities_of_a_softmax_in_half_precision_are_accepted(dtype, classes):
    """The oracle is the metric of the same numbers in float64, divided by their sums."""
    logits = np.random.default_rng(5).normal(size=(500, classes)) * 3
    half = np.asarray(keras.ops.softmax(keras.ops.cast(logits, dtype)))
    exact = half.astype(np.float64) / half.astype(np.float64).sum(-1, keepdims=True)
    labels = np.arange(500) % classes
    for rows in (half, half.astype(np.float32)):
        assert metrics.brier(rows, labels) == pytest.approx(metrics.brier(exact, labels), abs=0.01)
        assert metrics.disagreement(np.stack([rows, rows], axis=1)).max() == 0
    with pytest.raises(ValueError, match="sum to 1 over the classes"):
        metrics.brier(half.astype(np.float32) * 1.02, labels)


def test_member_probabilities_have_three_axes_and_labels_match():
    probabilities, labels = member_probabilities(9)
    with pytest.raises(ValueError, match=r"member_probabilities must have the shape \(examples, members, classes\)"):
        metrics.disagreement(probabilities[:, 0])
    with pytest.raises(ValueError, match="member_probabilities must lie in"):
        metrics.double_fault(probabilities * 2, labels)
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(97,\)"):
        metrics.double_fault(probabilities, labels[1:])


def test_ece_needs_a_bin():
    with pytest.raises(ValueError, match=r"bins must be at least 1\. Received: bins=0"):
        metrics.ece(*TWO, bins=0)


def sorted_examples(probabilities, labels):
    pairs = [(row.max(), bool(row.argmax() == label)) for row, label in zip(probabilities, labels, strict=True)]
    return sorted(pairs)


@pytest.mark.parametrize("bins", [1, 4, 15, 300])
def test_adaptive_ece_is_the_loop_over_slices_of_the_sorted_examples(bins):
    probabilities, labels = one_member(3)
    pairs = sorted_examples(probabilities, labels)
    size, more = divmod(len(pairs), bins)
    total, start = 0.0, 0
    for number in range(bins):
        part = pairs[start : start + size + (number < more)]
        start += len(part)
        total += abs(sum(right for _, right in part) - sum(confidence for confidence, _ in part))
    assert metrics.adaptive_ece(probabilities, labels, bins) == pytest.approx(total / len(pairs))


@pytest.mark.parametrize("bins", [4, 15])
def test_adaptive_ece_spreads_correct_examples_evenly_over_equal_confidences(bins):
    # Vote fractions of three members, exactly calibrated.
    confidence = np.repeat([1 / 3, 2 / 3, 1.0], 300)
    correct = np.concatenate([np.arange(300) < count for count in (100, 200, 300)])
    probabilities = np.stack([confidence, (1 - confidence) / 3, (1 - confidence) / 3, (1 - confidence) / 3], axis=1)
    assert metrics.adaptive_ece(probabilities, np.where(correct, 0, 1), bins) == pytest.approx(0, abs=1e-12)
    curve = metrics.reliability_curve(probabilities, np.where(correct, 0, 1), bins, adaptive=True)
    np.testing.assert_allclose(curve["accuracy"], curve["confidence"])


def test_one_bin_is_the_gap_between_mean_confidence_and_accuracy():
    probabilities, labels = one_member(4)
    gap = abs(probabilities.max(axis=1).mean() - metrics.accuracy(probabilities, labels))
    assert metrics.adaptive_ece(probabilities, labels, bins=1) == pytest.approx(gap)
    assert metrics.ece(probabilities, labels, bins=1) == pytest.approx(gap)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 40), st.booleans())
def test_neither_curve_nor_error_depends_on_the_order_of_the_examples(seed, bins, adaptive):
    probabilities, labels = one_member(seed, examples=60)
    probabilities = np.round(probabilities[:, :2], 1)  # so that many confidences are equal
    probabilities = np.stack([probabilities[:, 0], 1 - probabilities[:, 0]], axis=1)
    order = np.random.default_rng(seed).permutation(60)
    one = metrics.reliability_curve(probabilities, labels % 2, bins, adaptive=adaptive)
    two = metrics.reliability_curve(probabilities[order], labels[order] % 2, bins, adaptive=adaptive)
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name])


@pytest.mark.parametrize(("adaptive", "error"), [(False, metrics.ece), (True, metrics.adaptive_ece)])
def test_the_error_is_the_weighted_gap_of_the_reliability_curve(adaptive, error):
    probabilities, labels = one_member(5)
    curve = metrics.reliability_curve(probabilities, labels, 7, adaptive=adaptive)
    gaps = np.nan_to_num(np.abs(curve["confidence"] - curve["accuracy"])) * curve["count"]
    assert curve["count"].sum() == len(labels)
    assert error(probabilities, labels, 7) == pytest.approx(gaps.sum() / len(labels))


def test_the_reliability_curve_is_that_of_scikit_learn_and_has_nan_for_empty_bins():
    probabilities, labels = one_member(6)
    curve = metrics.reliability_curve(probabilities, labels, 10)
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = sklearn.calibration.calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    filled = curve["count"] > 0
    np.testing.assert_allclose(curve["accuracy"][filled], accuracy)
    np.testing.assert_allclose(curve["confidence"][filled], confidence)
    assert np.isnan(curve["accuracy"][~filled]).all()
    assert not filled[:2].any()  # of four classes the largest has at least 0.25


def test_adaptive_ece_needs_a_bin():
    with pytest.raises(ValueError, match=r"bins must be at least 1\. Received: bins=0"):
        metrics.adaptive_ece(*one_member(1), bins=0)


def test_q_and_error_correlation_are_the_counts_over_pairs():
    probabilities, labels = member_probabilities(4)
    right = probabilities.argmax(axis=2) == labels[:, None]
    q, rho = metrics.q_statistic(probabilities, labels), metrics.error_correlation(probabilities, labels)
    for i, j in itertools.product(range(3), repeat=2):
        a = sum(x and y for x, y in right[:, [i, j]])
        b = sum(x and not y for x, y in right[:, [i, j]])
        c = sum(y and not x for x, y in right[:, [i, j]])
        d = len(labels) - a - b - c
        assert q[i, j] == pytest.approx((a * d - b * c) / (a * d + b * c))
        assert rho[i, j] == pytest.approx(scipy.stats.pearsonr(right[:, i], right[:, j]).statistic)


def test_members_without_errors_have_no_q_and_no_correlation():
    labels = np.array([0, 1, 1])
    certain = np.eye(2)[labels]
    probabilities = np.stack([certain, certain[::-1]], axis=1)
    assert np.isnan(metrics.error_correlation(probabilities, labels)).tolist() == [[True, True], [True, False]]
    assert np.isnan(metrics.q_statistic(probabilities, labels)).tolist() == [[True, True], [True, False]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_gain_of_the_committee_is_the_ambiguity(seed, members):
    probabilities, labels = member_probabilities(seed, members=members)
    alone = [[score(probabilities[:, m], labels) for m in range(members)] for score in (metrics.brier, metrics.nll)]
    geometric = probabilities.prod(axis=1) ** (1 / members)
    geometric /= geometric.sum(axis=1, keepdims=True)
    together = [metrics.brier(probabilities.mean(axis=1), labels), metrics.nll(geometric, labels)]
    for split, scores, score in zip((metrics.ambiguity, metrics.log_ambiguity), alone, together, strict=True):
        parts = split(probabilities, labels)
        assert parts["members"] == pytest.approx(np.mean(scores))
        assert parts["committee"] == pytest.approx(score)
        assert parts["members"] - parts["ambiguity"] == pytest.approx(score)
        assert parts["ambiguity"] >= -1e-12


def test_the_ambiguities_are_the_distances_of_the_members_from_their_committee():
    probabilities, labels = member_probabilities(8, examples=5)
    squared, divergence = [], []
    for example in probabilities:
        mean, power = example.mean(axis=0), np.exp(np.log(example).mean(axis=0))
        power /= power.sum()
        squared += [((member - mean) ** 2).sum() for member in example]
        divergence += [scipy.stats.entropy(power, member) for member in example]
    assert metrics.ambiguity(probabilities, labels)["ambiguity"] == pytest.approx(np.mean(squared))
    assert metrics.log_ambiguity(probabilities, labels)["ambiguity"] == pytest.approx(np.mean(divergence))
    assert metrics.log_ambiguity(probabilities[:, [1, 1]], labels)["ambiguity"] == pytest.approx(0)


def test_uncertainty_is_that_of_scipy_and_its_parts_add_up():
    probabilities, _ = member_probabilities(9)
    parts = metrics.uncertainty_decomposition(probabilities)
    np.testing.assert_allclose(parts["total"], scipy.stats.entropy(probabilities.mean(axis=1), axis=1))
    np.testing.assert_allclose(parts["expected"], scipy.stats.entropy(probabilities, axis=2).mean(axis=1))
    np.testing.assert_allclose(parts["total"], parts["expected"] + parts["mutual"])
    divergence = [[scipy.stats.entropy(p, row.mean(axis=0)) for p in row] for row in probabilities]
    np.testing.assert_allclose(parts["mutual"], np.mean(divergence, axis=1))


def test_a_member_of_twice_the_weight_counts_as_two():
    probabilities, _ = member_probabilities(10)
    parts, expected = (
        metrics.uncertainty_decomposition(probabilities, [0.5, 0.25, 0.25]),
        metrics.uncertainty_decomposition(probabilities[:, [0, 0, 1, 2]]),
    )
    for name, values in parts.items():
        np.testing.assert_allclose(values, expected[name])


def test_two_certain_members_that_differ_have_one_bit_of_mutual_information():
    probabilities = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]])
    parts = metrics.uncertainty_decomposition(probabilities)
    assert parts["mutual"] == pytest.approx([np.log(2), 0])
    assert parts["expected"] == pytest.approx([0, scipy.stats.entropy([0.2, 0.7, 0.1])])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 50))
def test_auroc_and_fpr_are_those_of_scikit_learn_with_ties(seed, many, few):
    rng = np.random.default_rng(seed)
    in_distribution, ood = rng.integers(2, 12, many) / 10, rng.integers(0, 9, few) / 10
    truth, scores = np.repeat([1, 0], [many, few]), np.concatenate([in_distribution, ood])
    false, true, _ = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert metrics.auroc(in_distribution, ood) == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores))
    assert metrics.fpr_at_tpr(in_distribution, ood) == pytest.approx(false[true >= 0.95 - 1e-9].min())


def test_nineteen_of_twenty_examples_pass_the_threshold():
    in_distribution = np.arange(1, 21) / 20
    assert metrics.fpr_at_tpr(in_distribution, np.array([0.07, 0.1, 0.12, 0.9])) == 0.75
    assert metrics.auroc(in_distribution, np.array([2.0])) == 0


def test_rounding_of_the_rate_requires_no_additional_example():
    in_distribution = np.arange(100)
    assert 0.55 * 100 > 55
    assert metrics.fpr_at_tpr(in_distribution, np.array([44.5, 45.0, 46.0]), tpr=0.55) == pytest.approx(2 / 3)


@pytest.mark.parametrize("scores", [np.array([]), np.array([0.2, np.nan]), np.array([np.inf]), np.array([[0.7]])])
def test_invalid_scores_are_rejected(scores):
    with pytest.raises(ValueError, match=r"ood must be finite floats of shape \(examples,\)"):
        metrics.auroc(np.array([0.2]), scores)
    with pytest.raises(ValueError, match=r"in_distribution must be finite floats"):
        metrics.fpr_at_tpr(scores, np.array([0.2]))


def test_the_rate_must_be_in_its_range():
    with pytest.raises(ValueError, match=r"tpr must lie in \(0, 1\]\. Received: tpr=0"):
        metrics.fpr_at_tpr(np.array([0.2]), np.array([0.7]), tpr=0)


@pytest.mark.parametrize(("correct", "examples"), [(0, 19), (19, 19), (31, 48), (700, 1000)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, examples):
    z, p = scipy.stats.norm.ppf(0.975), correct / examples
    center = (p + z**2 / (2 * examples)) / (1 + z**2 / examples)
    half = z / (1 + z**2 / examples) * np.sqrt(p * (1 - p) / examples + z**2 / (4 * examples**2))
    interval = metrics.accuracy_interval(p, examples)
    assert (interval["low"], interval["high"]) == pytest.approx((center - half, center + half), abs=1e-9)


def test_few_images_are_a_warning_with_their_number():
    assert few_images_note("the committee is chosen", 100) == ""
    text = few_images_note("the committee is chosen", 19)
    assert text.startswith("warning: the committee is chosen on 19 validation images only; fewer than 100 leave")
    assert " 1 test image only" in few_images_note("x", 1, "test")


def test_precision_recall_and_top_k_are_those_of_scikit_learn():
    probabilities, labels = some_probabilities(7, classes=12)
    matrix = metrics.confusion_matrix(probabilities, labels)
    theirs = sklearn.metrics.precision_recall_fscore_support(labels, probabilities.argmax(1), labels=range(12))
    np.testing.assert_allclose(metrics.precision_and_recall(matrix), theirs[:2])
    expected = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(12))
    assert metrics.top_k_accuracy(probabilities, labels) == pytest.approx(expected)
    assert metrics.top_k_accuracy(probabilities, labels, k=1) == metrics.accuracy(probabilities, labels)
    with pytest.raises(ValueError, match=r"k must be at least 1\. Received: k=0"):
        metrics.top_k_accuracy(probabilities, labels, k=0)


def test_a_class_never_predicted_has_no_precision_and_one_without_examples_no_recall():
    precision, recall = metrics.precision_and_recall(np.array([[2, 1, 0], [0, 0, 0], [3, 1, 0]]))
    np.testing.assert_array_equal(precision, [2 / 5, 0, np.nan])
    np.testing.assert_array_equal(recall, [2 / 3, np.nan, 0])


def test_the_interval_of_a_loss_of_accuracy_is_that_of_a_bootstrap_over_pairs():
    rng = np.random.default_rng(3)
    reference = rng.random(2000) < 0.8
    correct = np.where(rng.random(2000) < 0.03, ~reference, reference)
    interval = accuracy_loss_interval(reference, correct)
    loss = reference.astype(float) - correct
    resampled = [loss[rng.integers(0, 2000, 2000)].mean() for _ in range(2000)]
    assert interval["value"] == pytest.approx(loss.mean())
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (interval["low"], interval["high"]) == pytest.approx((low, high), abs=1e-3)


def test_a_loss_that_no_example_has_is_bounded_by_their_number():
    correct = np.ones(5000, bool)
    assert accuracy_loss_interval(correct, correct)["high"] == pytest.approx(0.00074, abs=1e-5)
    interval = accuracy_loss_interval(correct[:100], correct[:100])
    needed = examples_for_loss(interval, 100, 0.002)
    enough = np.ones(needed, bool)
    assert accuracy_loss_interval(enough, enough)["high"] < 0.002
    assert accuracy_loss_interval(enough[2:], enough[2:])["high"] >= 0.002
    assert examples_for_loss({"value": 0.003, "low": 0.0, "high": 0.006}, 100, 0.002) is None
