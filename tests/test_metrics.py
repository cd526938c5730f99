"""Are the metrics those of their definitions, of scikit-learn, and of the plain loop?"""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee import metrics


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draw(seed, examples=211, classes=5, dtype=np.float64):
    generator = np.random.default_rng(seed)
    probabilities = softmax(2 * generator.normal(size=(examples, classes))).astype(dtype)
    return probabilities, generator.integers(0, classes, examples)


def draw_votes(seed, examples=97, members=3, classes=4):
    generator = np.random.default_rng(seed)
    return softmax(generator.normal(size=(examples, members, classes))), generator.integers(0, classes, examples)


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
    probabilities, labels = draw(seed)
    one_hot = np.eye(5)[labels]
    per_class = [sklearn.metrics.brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(5)]
    assert metrics.accuracy(probabilities, labels) == sklearn.metrics.accuracy_score(labels, probabilities.argmax(1))
    assert metrics.nll(probabilities, labels) == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    assert metrics.brier(probabilities, labels) == pytest.approx(sum(per_class))


def test_the_confusion_matrix_is_that_of_scikit_learn():
    probabilities, labels = draw(3)
    expected = sklearn.metrics.confusion_matrix(labels, probabilities.argmax(1), labels=range(5))
    np.testing.assert_array_equal(metrics.confusion_matrix(probabilities, labels), expected)


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
    probabilities, labels = draw(3)
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
    probabilities, labels = draw(5, examples=20_000, dtype=np.float32)
    exact = -np.mean(np.log(probabilities.astype(np.float64)[np.arange(20_000), labels]))
    assert metrics.nll(probabilities, labels) == pytest.approx(exact, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 7), st.integers(1, 40))
def test_the_metrics_do_not_depend_on_the_order_of_examples_or_classes(seed, classes, examples):
    probabilities, labels = draw(seed, examples, classes)
    generator = np.random.default_rng(seed)
    rows, columns = generator.permutation(examples), generator.permutation(classes)
    shuffled = probabilities[rows][:, columns]
    renamed = np.argsort(columns)[labels[rows]]
    assert metrics.classification_metrics(shuffled, renamed) == pytest.approx(
        metrics.classification_metrics(probabilities, labels)
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 7), st.integers(1, 40))
def test_the_metrics_stay_in_their_ranges(seed, classes, examples):
    summary = metrics.classification_metrics(*draw(seed, examples, classes))
    assert 0 <= summary["accuracy"] <= 1
    assert 0 <= summary["ece"] <= 1
    assert 0 <= summary["brier"] <= 2
    assert 0 <= summary["nll"] <= -np.log(1e-12)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000))
def test_a_certain_and_right_prediction_is_without_fault(seed):
    labels = draw(seed)[1]
    assert metrics.classification_metrics(np.eye(5)[labels], labels) == {
        "accuracy": 1.0,
        "nll": 0.0,
        "ece": 0.0,
        "brier": 0.0,
    }


def test_disagreement_and_double_fault_are_the_loops_over_pairs():
    votes, labels = draw_votes(4)
    top = votes.argmax(axis=2)
    for i in range(3):
        for j in range(3):
            differ = np.mean([top[n, i] != top[n, j] for n in range(97)])
            both_wrong = np.mean([top[n, i] != labels[n] and top[n, j] != labels[n] for n in range(97)])
            assert metrics.disagreement(votes)[i, j] == pytest.approx(differ)
            assert metrics.double_fault(votes, labels)[i, j] == pytest.approx(both_wrong)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_disagreement_is_a_distance_and_the_diagonal_of_double_fault_the_error(seed, members):
    votes, labels = draw_votes(seed, members=members)
    disagreement = metrics.disagreement(votes)
    errors = [1 - metrics.accuracy(votes[:, member], labels) for member in range(members)]
    assert np.array_equal(disagreement, disagreement.T)
    assert not disagreement.diagonal().any()
    assert metrics.double_fault(votes, labels).diagonal() == pytest.approx(errors)


def test_two_members_of_one_mind_do_not_disagree():
    votes, _ = draw_votes(6)
    assert metrics.disagreement(votes[:, [0, 0]]).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert metrics.disagreement(votes)[0, 1] > 0.2


FINE, LABELS = draw(8, examples=6, classes=3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "wanted"),
    [
        (FINE[0], LABELS, r"shape \(examples, classes\).*Received: shape \(3,\)"),
        (FINE[:0], LABELS[:0], r"none of them 0\. Received: shape \(0, 3\)"),
        ((FINE > 0.5).astype(int), LABELS, "probabilities must be floats. Received: dtype int64"),
        (np.where(FINE[2, 1] == FINE, np.nan, FINE), LABELS, "hold no NaN"),
        (FINE * 1.01, LABELS, "sum to 1 over the classes"),
        (FINE - 0.2 * np.array([1, -1, 0]), LABELS, r"must lie in \[0, 1\]"),
        (FINE, LABELS[:5], r"labels must be integers \(6,\)\. Received: int64 of shape \(5,\)"),
        (FINE, LABELS.astype(float), r"labels must be integers \(6,\)\. Received: float64"),
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
def test_what_are_no_probabilities_or_labels_is_refused(metric, probabilities, labels, wanted):
    with pytest.raises(ValueError, match=wanted):
        metric(probabilities, labels)


def test_votes_have_three_axes_and_labels_fit_them():
    votes, labels = draw_votes(9)
    with pytest.raises(ValueError, match=r"votes must have the shape \(examples, members, classes\)"):
        metrics.disagreement(votes[:, 0])
    with pytest.raises(ValueError, match="votes must lie in"):
        metrics.double_fault(votes * 2, labels)
    with pytest.raises(ValueError, match=r"labels must be integers \(97,\)"):
        metrics.double_fault(votes, labels[1:])


def test_ece_needs_a_bin():
    with pytest.raises(ValueError, match=r"bins must be at least 1\. Received: 0"):
        metrics.ece(*TWO, bins=0)
