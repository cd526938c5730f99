"""Are calibration, diversity, uncertainty and detection those of their definitions, loops and scikit-learn?"""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import metrics


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draw_votes(seed, examples=97, members=3, classes=4):
    """Members that share a part of their logits, and are right more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, examples)
    shared = generator.normal(size=(examples, 1, classes)) + 1.5 * np.eye(classes)[labels][:, None]
    return softmax(shared + generator.normal(size=(examples, members, classes))), labels


def draw(seed, examples=211):
    votes, labels = draw_votes(seed, examples)
    return votes[:, 0], labels


def sorted_examples(probabilities, labels):
    pairs = [(row.max(), bool(row.argmax() == label)) for row, label in zip(probabilities, labels, strict=True)]
    return sorted(pairs)


@pytest.mark.parametrize("bins", [1, 4, 15, 300])
def test_adaptive_ece_is_the_loop_over_slices_of_the_sorted_examples(bins):
    probabilities, labels = draw(3)
    pairs = sorted_examples(probabilities, labels)
    size, more = divmod(len(pairs), bins)
    total, start = 0.0, 0
    for number in range(bins):
        part = pairs[start : start + size + (number < more)]
        start += len(part)
        total += abs(sum(right for _, right in part) - sum(confidence for confidence, _ in part))
    assert metrics.adaptive_ece(probabilities, labels, bins) == pytest.approx(total / len(pairs))


def test_one_bin_is_the_gap_between_mean_confidence_and_accuracy():
    probabilities, labels = draw(4)
    gap = abs(probabilities.max(axis=1).mean() - metrics.accuracy(probabilities, labels))
    assert metrics.adaptive_ece(probabilities, labels, bins=1) == pytest.approx(gap)
    assert metrics.ece(probabilities, labels, bins=1) == pytest.approx(gap)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 40), st.booleans())
def test_neither_curve_nor_error_depends_on_the_order_of_the_examples(seed, bins, adaptive):
    probabilities, labels = draw(seed, examples=60)
    probabilities = np.round(probabilities[:, :2], 1)  # so that many confidences are equal
    probabilities = np.stack([probabilities[:, 0], 1 - probabilities[:, 0]], axis=1)
    order = np.random.default_rng(seed).permutation(60)
    one = metrics.reliability_curve(probabilities, labels % 2, bins, adaptive=adaptive)
    two = metrics.reliability_curve(probabilities[order], labels[order] % 2, bins, adaptive=adaptive)
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name])


@pytest.mark.parametrize(("adaptive", "error"), [(False, metrics.ece), (True, metrics.adaptive_ece)])
def test_the_error_is_the_weighted_gap_of_the_reliability_curve(adaptive, error):
    probabilities, labels = draw(5)
    curve = metrics.reliability_curve(probabilities, labels, 7, adaptive=adaptive)
    gaps = np.nan_to_num(np.abs(curve["confidence"] - curve["accuracy"])) * curve["count"]
    assert curve["count"].sum() == len(labels)
    assert error(probabilities, labels, 7) == pytest.approx(gaps.sum() / len(labels))


def test_the_reliability_curve_is_that_of_scikit_learn_and_has_nan_for_empty_bins():
    probabilities, labels = draw(6)
    curve = metrics.reliability_curve(probabilities, labels, 10)
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = sklearn.calibration.calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    filled = curve["count"] > 0
    np.testing.assert_allclose(curve["accuracy"][filled], accuracy)
    np.testing.assert_allclose(curve["confidence"][filled], confidence)
    assert np.isnan(curve["accuracy"][~filled]).all()
    assert not filled[:2].any()  # of four classes the largest has at least 0.25


def test_adaptive_bins_need_a_bin_too():
    with pytest.raises(ValueError, match=r"bins must be at least 1\. Received: 0"):
        metrics.adaptive_ece(*draw(1), bins=0)


def test_q_and_error_correlation_are_the_counts_over_pairs():
    votes, labels = draw_votes(4)
    right = votes.argmax(axis=2) == labels[:, None]
    q, rho = metrics.q_statistic(votes, labels), metrics.error_correlation(votes, labels)
    for i, j in itertools.product(range(3), repeat=2):
        a = sum(x and y for x, y in right[:, [i, j]])
        b = sum(x and not y for x, y in right[:, [i, j]])
        c = sum(y and not x for x, y in right[:, [i, j]])
        d = len(labels) - a - b - c
        assert q[i, j] == pytest.approx((a * d - b * c) / (a * d + b * c))
        assert rho[i, j] == pytest.approx(scipy.stats.pearsonr(right[:, i], right[:, j]).statistic)


def test_members_that_never_err_have_no_q_and_no_correlation():
    labels = np.array([0, 1, 1])
    certain = np.eye(2)[labels]
    votes = np.stack([certain, certain[::-1]], axis=1)
    assert np.isnan(metrics.error_correlation(votes, labels)).tolist() == [[True, True], [True, False]]
    assert np.isnan(metrics.q_statistic(votes, labels)).tolist() == [[True, True], [True, False]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_committee_is_as_much_better_than_its_members_as_they_are_ambiguous(seed, members):
    votes, labels = draw_votes(seed, members=members)
    alone = [[score(votes[:, m], labels) for m in range(members)] for score in (metrics.brier, metrics.nll)]
    geometric = votes.prod(axis=1) ** (1 / members)
    geometric /= geometric.sum(axis=1, keepdims=True)
    together = [metrics.brier(votes.mean(axis=1), labels), metrics.nll(geometric, labels)]
    for split, scores, score in zip((metrics.ambiguity, metrics.log_ambiguity), alone, together, strict=True):
        parts = split(votes, labels)
        assert parts["members"] == pytest.approx(np.mean(scores))
        assert parts["committee"] == pytest.approx(score)
        assert parts["members"] - parts["ambiguity"] == pytest.approx(score)
        assert parts["ambiguity"] >= -1e-12


def test_the_ambiguities_are_the_distances_of_the_members_from_their_committee():
    votes, labels = draw_votes(8, examples=5)
    squared, divergence = [], []
    for example in votes:
        mean, power = example.mean(axis=0), np.exp(np.log(example).mean(axis=0))
        power /= power.sum()
        squared += [((member - mean) ** 2).sum() for member in example]
        divergence += [scipy.stats.entropy(power, member) for member in example]
    assert metrics.ambiguity(votes, labels)["ambiguity"] == pytest.approx(np.mean(squared))
    assert metrics.log_ambiguity(votes, labels)["ambiguity"] == pytest.approx(np.mean(divergence))
    assert metrics.log_ambiguity(votes[:, [1, 1]], labels)["ambiguity"] == pytest.approx(0)


def test_uncertainty_is_that_of_scipy_and_its_parts_add_up():
    votes, _ = draw_votes(9)
    parts = metrics.uncertainty_decomposition(votes)
    np.testing.assert_allclose(parts["total"], scipy.stats.entropy(votes.mean(axis=1), axis=1))
    np.testing.assert_allclose(parts["expected"], scipy.stats.entropy(votes, axis=2).mean(axis=1))
    np.testing.assert_allclose(parts["total"], parts["expected"] + parts["mutual"])
    divergence = [[scipy.stats.entropy(p, row.mean(axis=0)) for p in row] for row in votes]
    np.testing.assert_allclose(parts["mutual"], np.mean(divergence, axis=1))


def test_a_member_of_twice_the_weight_counts_as_two():
    votes, _ = draw_votes(10)
    parts, wanted = (
        metrics.uncertainty_decomposition(votes, [0.5, 0.25, 0.25]),
        metrics.uncertainty_decomposition(votes[:, [0, 0, 1, 2]]),
    )
    for name, values in parts.items():
        np.testing.assert_allclose(values, wanted[name])


def test_two_certain_members_who_differ_have_one_bit_of_mutual_information_and_no_noise():
    votes = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]])
    parts = metrics.uncertainty_decomposition(votes)
    assert parts["mutual"] == pytest.approx([np.log(2), 0])
    assert parts["expected"] == pytest.approx([0, scipy.stats.entropy([0.2, 0.7, 0.1])])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 50))
def test_auroc_and_fpr_are_those_of_scikit_learn_with_ties(seed, many, few):
    generator = np.random.default_rng(seed)
    known, foreign = generator.integers(2, 12, many) / 10, generator.integers(0, 9, few) / 10
    truth, scores = np.repeat([1, 0], [many, few]), np.concatenate([known, foreign])
    false, true, _ = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert metrics.auroc(known, foreign) == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores))
    assert metrics.fpr_at_tpr(known, foreign) == pytest.approx(false[true >= 0.95 - 1e-9].min())


def test_the_threshold_lets_nineteen_of_twenty_pass():
    known = np.arange(1, 21) / 20
    assert metrics.fpr_at_tpr(known, np.array([0.07, 0.1, 0.12, 0.9])) == 0.75
    assert metrics.auroc(known, np.array([2.0])) == 0


def test_a_share_that_floats_make_a_little_larger_asks_for_no_example_more():
    known = np.arange(100)
    assert 0.55 * 100 > 55
    assert metrics.fpr_at_tpr(known, np.array([44.5, 45.0, 46.0]), tpr=0.55) == pytest.approx(2 / 3)


@pytest.mark.parametrize("scores", [np.array([]), np.array([0.2, np.nan]), np.array([[0.7]])])
def test_what_are_no_scores_is_refused(scores):
    with pytest.raises(ValueError, match=r"foreign must be floats \(examples,\), none of them NaN"):
        metrics.auroc(np.array([0.2]), scores)
    with pytest.raises(ValueError, match=r"known must be floats"):
        metrics.fpr_at_tpr(scores, np.array([0.2]))


def test_the_rate_must_be_one():
    with pytest.raises(ValueError, match=r"tpr must lie in \(0, 1\]\. Received: 0"):
        metrics.fpr_at_tpr(np.array([0.2]), np.array([0.7]), tpr=0)
