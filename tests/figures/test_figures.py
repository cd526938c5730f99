"""Labels and axes of the figures, read from Matplotlib's objects."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from keras_committee.figures.curves import training_curves
from keras_committee.figures.matrices import confusion_heatmap, heatmap
from keras_committee.figures.style import GRID_LINE, Label, color, place_labels


def test_a_label_leaves_a_preferred_position_that_is_occupied():
    axes = Figure((6, 4)).subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    label = Label(x=5, y=5, text="net", color="#0068b5", preferred_positions=("right",))
    place_labels(axes, [label], points=[(5, 5)])
    [free] = axes.texts
    place_labels(axes, [label], points=[(5, 5), (5.5, 5)])
    assert [text.get_text() for text in axes.texts] == ["net", "net"]
    assert free.get_horizontalalignment() == "left"
    assert axes.texts[1].get_horizontalalignment() != "left"


def test_the_epoch_axis_starts_before_the_first_epoch_and_has_integer_ticks():
    rows = [{"epoch": epoch, "loss": 1 / epoch, "validation_accuracy": 0.2 * epoch} for epoch in (1, 2, 3, 4)]
    figure = training_curves({0: rows}, None, 7.6)
    left, right = figure.axes
    first, last = left.get_xlim()
    assert (first, last) == (1 - 0.03 * 4, 1 + 1.03 * 3)
    assert set(left.get_xticks()) == {1, 2, 3, 4}
    assert right.get_xlim()[1] > last  # room for the names


def test_the_diagonal_of_a_heatmap_is_gray_and_the_cells_follow_their_values():
    values = np.array([[0.0, 0.2, 0.0], [0.7, 0.0, 0.1], [0.0, 0.0, 0.0]])
    [axes] = heatmap(values, ["a", "b", "c"], ("true", "predicted"), 0, 7.6).axes
    gray = [patch.get_xy() for patch in axes.patches if patch.get_facecolor() == to_rgba(GRID_LINE)]
    assert gray == [(-0.5, -0.5), (0.5, 0.5), (1.5, 1.5)]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(1, 0): "20", (0, 1): "70", (2, 1): "10"}


@pytest.mark.parametrize("classes", [3, 20])
def test_the_diagonal_of_a_confusion_matrix_shows_the_recalls(classes):
    names = [f"c{index}" for index in range(classes)]
    recalls = np.linspace(0.3, 0.9, classes)
    values = np.diag(recalls)
    values[np.arange(classes), np.roll(np.arange(classes), -1)] = 1 - recalls
    [axes] = confusion_heatmap(values, names, 7.6).axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert [texts[index, index] for index in range(classes)] == [f"{100 * recall:.0f}" for recall in recalls]
    alphas = [patch.get_alpha() for patch in axes.patches if patch.get_facecolor()[:3] == to_rgba(color(1))[:3]]
    assert alphas == pytest.approx(0.7 * recalls)
