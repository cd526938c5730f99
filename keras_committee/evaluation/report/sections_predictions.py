"""Sections on predictions: reliability, diversity, disagreements and confusion."""

import base64
import dataclasses
import io
from collections import Counter

import numpy as np
from PIL import Image

from keras_committee import metrics
from keras_committee.data.validation import name_unreadable_images
from keras_committee.evaluation.evaluate import MIN_CLASSES_FOR_TOP_5, most_certain_errors
from keras_committee.evaluation.report.layout import Block, Section, Table, format_percent, format_points
from keras_committee.evaluation.report.run_data import ReportData
from keras_committee.figures.curves import reliability_data, reliability_diagrams, risk_coverage_curves
from keras_committee.figures.matrices import MAX_LABELED_ROWS, confusion_heatmap, heatmap, image_gallery
from keras_committee.figures.style import SERIES_COLORS, Picture

MAX_SHOWN = 12
_MAX_CLASS_ROWS = 20
_MAX_ERROR_ROWS = 20
_MAX_THUMBNAIL_SIDE = 256  # pixels; larger images are downsized to keep the page small


def reliability_section(report_data: ReportData) -> Section:
    """Confidence against accuracy of the members and committees."""
    probabilities = np.exp(report_data.predictions)
    panels = [
        reliability_data(
            architecture.name, probabilities[:, list(architecture.members)], predictions, report_data.labels
        )
        for architecture, predictions in zip(report_data.series, report_data.series_predictions, strict=True)
    ]
    text = " ".join(
        _reliability_sentence(one.name, predictions, report_data)
        for one, predictions in zip(report_data.series, report_data.series_predictions, strict=True)
    )
    rows = [_reliability_row(report_data, index, probabilities) for index in range(len(report_data.members))]
    rows += [
        (f"all {one.name}", *_confidence(predictions, report_data.labels))
        for one, predictions in zip(report_data.series, report_data.series_predictions, strict=True)
    ]
    table = Table(
        columns=("predictor", "mean confidence", "accuracy", "ECE", "adaptive ECE"),
        rows=tuple(rows),
        note="ECE with 15 bins of equal width, adaptive ECE with 15 bins of equally many images.",
    )
    picture = Picture("reliability", text, lambda width: reliability_diagrams(panels, width))
    description = text + " Members are blue, their committee is orange; on the dashed line confidence equals accuracy."
    block = Block(sentence=description, pictures=(picture,), table=table)
    return Section(name="reliability", title="Reliability", blocks=(block,))


def selective_section(report_data: ReportData) -> Section:
    """Error rate of the most confident answers of members, committees and selections, and what was promised of them."""
    answers = _answers(report_data)
    committees = {name: answer for name, answer in answers.items() if not name.startswith("member ")}
    text = " ".join(_selective_sentence(name, *answer) for name, answer in committees.items())
    picture = Picture(
        "risk-coverage",
        text,
        lambda width: risk_coverage_curves({name: _curve(*answers[name]) for name in _drawn(answers)}, width),
    )
    rows = []
    for name, answer in answers.items():
        scores = metrics.selective_metrics(*answer)
        coverages = (format_percent(scores[f"coverage_at_{percent}_percent_risk"]) for percent in (1, 5))
        rows.append((name, f"{scores['aurc']:.5f}", *coverages))
    table = Table(
        columns=("predictor", "AURC", "accepted at 1 % error", "accepted at 5 % error"),
        rows=tuple(rows),
        note="AURC: the area under the curve, the mean error rate over all numbers of most confident answers. The"
        " thresholds are chosen on the same images; `keras-committee calibrate --max-risk` promises an error rate.",
    )
    blocks = [Block(sentence=text, pictures=(picture,), table=table), *_promise_blocks(report_data)]
    return Section(name="selective", title="Accepted answers", blocks=tuple(blocks))


def _answers(report_data: ReportData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return confidence and correctness of the answers of each member, series and selection, by name."""
    labels = report_data.labels
    probabilities = {
        f"member {name}": np.exp(report_data.predictions[:, index])
        for index, name in enumerate(short_names(report_data))
    }
    probabilities |= {
        f"all {one.name}": output
        for one, output in zip(report_data.series, report_data.series_predictions, strict=True)
        if len(one.members) > 1
    }
    answers = {name: (values.max(axis=1), values.argmax(axis=1) == labels) for name, values in probabilities.items()}
    return answers | {
        one.name: (one.confidence, one.correct)
        for one in report_data.selected
        if one.confidence is not None and one.correct is not None
    }


def _drawn(answers: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Return the names of the curves: the first member, and all committees, as far as there are colors."""
    return [next(iter(answers)), *(name for name in answers if not name.startswith("member "))][: len(SERIES_COLORS)]


def _curve(confidence: np.ndarray, correct: np.ndarray) -> tuple[list[float], list[float]]:
    curve = metrics.risk_coverage_curve(confidence, correct)
    points = np.unique(np.searchsorted(curve.coverage, np.linspace(0.02, 1, 99) - 1e-9))
    return curve.coverage[points].tolist(), curve.risk[points].tolist()


def _selective_sentence(name: str, confidence: np.ndarray, correct: np.ndarray) -> str:
    scores = metrics.selective_metrics(confidence, correct)
    coverages = [format_percent(scores[f"coverage_at_{percent}_percent_risk"]) for percent in (1, 5)]
    return f"Of the answers of {name}, {coverages[0]} can be accepted at an error rate of 1 %, {coverages[1]} at 5 %."


def _promise_blocks(report_data: ReportData) -> list[Block]:
    """Return a block for each run with a promise."""
    blocks = []
    for run in report_data.runs:
        promise = run.other_results.get("calibration", {}).get("promise")
        if promise is not None:
            title = "Promise" + (f", {run.name}" if len(report_data.runs) > 1 else "")
            blocks.append(Block(sentence=_promise_sentence(promise), title=title))
    return blocks


def _promise_sentence(promise: dict) -> str:
    test, parts = promise["test"], []
    if sets := promise["sets"]:
        of_class = " of the images of each class" if len(sets["thresholds"]) > 1 else ""
        parts.append(
            f"{sets['method'].upper()} prediction sets hold the true class{of_class} with a probability of at least"
            f" {format_percent(sets['coverage'])}; on {test['examples']:,} test images it was"
            f" {format_percent(test['coverage'], 2)}, with {test['mean_set_size']:.2f} classes per set."
        )
    if acceptance := promise["acceptance"]:
        risk = "" if test["risk"] is None else f", with an error rate of {format_percent(test['risk'], 2)}"
        parts.append(
            f"Answers with a confidence of at least {acceptance['threshold']:.4g} have an error rate of at most"
            f" {format_percent(acceptance['max_risk'])} with a certainty of"
            f" {format_percent(acceptance['certainty'], 0)};"
            f" on {test['examples']:,} test images {format_percent(test['accepted'])} were accepted{risk}."
        )
    images = f"{promise['examples']:,} {promise['split']} images that nothing was chosen with"
    return " ".join([*parts, f"Promised on {images}."])


def diversity_section(report_data: ReportData) -> Section | None:
    """Disagreement of pairs of members; None for a single member."""
    if len(report_data.members) < 2:
        return None
    probabilities = np.exp(report_data.predictions)
    disagreement, double_fault = (
        metrics.disagreement(probabilities),
        metrics.double_fault(probabilities, report_data.labels),
    )
    names = short_names(report_data)
    text = _diversity_sentence(disagreement, double_fault, names)
    picture = Picture("disagreement", text, lambda width: heatmap(disagreement, names, ("member", "member"), 1, width))
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    rows = sorted(((disagreement[a, b], double_fault[a, b], names[a], names[b]) for a, b in pairs), reverse=True)
    shown = rows if len(rows) <= 12 else [*rows[:6], *rows[-6:]]
    table = Table(
        columns=("member", "member", "disagree on", "both wrong on"),
        rows=tuple((a, b, format_percent(d, 2), format_percent(f, 2)) for d, f, a, b in shown),
        first_numeric_column=2,
        note=""
        if len(rows) == len(shown)
        else f"The six pairs with the most and the six with the least disagreement, of {len(rows)}.",
    )
    return Section(
        name="diversity",
        title="Diversity",
        blocks=(Block(sentence=text, pictures=(picture,), table=table),),
    )


def confusion_section(report_data: ReportData) -> Section:
    """Confusion matrix, precision and recall of each class, and errors of the committee of all members."""
    matrix = metrics.confusion_matrix(report_data.committee_predictions, report_data.labels)
    row_fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    errors = matrix * (1 - np.eye(len(matrix), dtype=int))
    most_frequent = [
        divmod(int(flat_index), len(matrix)) for flat_index in np.argsort(-errors, axis=None, kind="stable")[:8]
    ]
    rows = [
        (
            report_data.classes[true],
            report_data.classes[predicted],
            f"{errors[true, predicted]:,}",
            format_percent(row_fractions[true, predicted]),
        )
        for true, predicted in most_frequent
        if errors[true, predicted]
    ]
    text = _confusion_sentence(report_data, errors, row_fractions)
    is_readable = len(report_data.classes) <= MAX_LABELED_ROWS  # otherwise only the most frequent confusions are listed
    picture = Picture(
        "confusion",
        text,
        lambda width: confusion_heatmap(row_fractions, report_data.classes, width),
    )
    table = Table(
        columns=("true class", "predicted class", "images", "of the class"), rows=tuple(rows), first_numeric_column=2
    )
    blocks = [
        Block(sentence=text, pictures=(picture,) if is_readable else (), table=table if rows else None),
        _classes_block(report_data, matrix),
        _misclassified_block(report_data),
    ]
    blocks = tuple(block for block in blocks if block is not None)
    return Section(name="confusion", title="Classes and errors", blocks=blocks)


def _classes_block(report_data: ReportData, matrix: np.ndarray) -> Block:
    precision, recall = metrics.precision_and_recall(matrix)
    examples = matrix.sum(axis=1)
    order = np.arange(len(matrix))
    if len(matrix) > _MAX_CLASS_ROWS:
        order = np.argsort(np.where(np.isnan(recall), np.inf, recall), kind="stable")[:_MAX_CLASS_ROWS]
    rows = tuple(
        (report_data.classes[k], f"{examples[k]:,}", *(_format_defined(score[k]) for score in (precision, recall)))
        for k in order
    )
    text = f"Mean recall over the classes: {format_percent(float(np.nanmean(recall)))}."
    if len(matrix) >= MIN_CLASSES_FOR_TOP_5:
        top_5 = metrics.top_k_accuracy(report_data.committee_predictions, report_data.labels, k=5)
        text += f" The true class is among the five most probable ones for {format_percent(top_5)} of the images."
    table = Table(
        columns=("class", "images", "precision", "recall"),
        rows=rows,
        note=f"The {_MAX_CLASS_ROWS} of {len(matrix)} classes with the lowest recall."
        if len(matrix) > _MAX_CLASS_ROWS
        else "",
    )
    return Block(title="Precision and recall", sentence=text, table=table)


def _misclassified_block(report_data: ReportData) -> Block | None:
    """Return the most certain errors, with the names of the images; None without errors."""
    predictions, labels = report_data.committee_predictions, report_data.labels
    predicted = predictions.argmax(axis=1)
    wrong = most_certain_errors(predictions, labels)
    if not len(wrong):
        return None
    images = report_data.runs[0].examples.images
    rows = tuple(
        (
            images.name(index),
            report_data.classes[labels[index]],
            report_data.classes[predicted[index]],
            format_percent(float(predictions[index, predicted[index]])),
        )
        for index in wrong[:_MAX_ERROR_ROWS].tolist()
    )
    shown = "" if len(wrong) <= len(rows) else f", of which these {len(rows)} are the most certain"
    text = f"The committee of all members misclassifies {len(wrong):,} of {len(labels):,} images{shown}."
    table = Table(
        columns=("image", "true class", "predicted class", "probability"),
        rows=rows,
        first_numeric_column=3,
        note="`keras-committee evaluate` writes all errors of a run to misclassified.csv.",
    )
    return Block(title="Misclassified images", sentence=text, table=table)


def _format_defined(score: float) -> str:
    return "not defined" if np.isnan(score) else format_percent(float(score))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisagreementExample:
    """An image of the split with the predictions for it.

    Attributes:
        index: Index in the split.
        image: uint8 `(height, width, channels)`.
        true_class: Name of its class.
        predicted_class: Class predicted by the committee of all members.
        correct: Whether that is the true class.
        member_predictions: For each member its short name, predicted class and the probability of that class.
    """

    index: int
    image: np.ndarray
    true_class: str
    predicted_class: str
    correct: bool
    member_predictions: tuple[tuple[str, str, float], ...]

    def png_url(self) -> str:
        """Return the image as a `data:` URL."""
        thumbnail = Image.fromarray(self.image.squeeze())
        thumbnail.thumbnail((_MAX_THUMBNAIL_SIDE, _MAX_THUMBNAIL_SIDE))
        content = io.BytesIO()
        thumbnail.save(content, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def rank_by_disagreement(probabilities: np.ndarray, max_examples: int) -> np.ndarray:
    """Return the indices of the examples with the most disagreement, in descending order.

    Disagreement is the entropy of the members' predicted classes; ties are ordered by the mutual information of member
    and class. Examples on which all members agree are excluded.

    Args:
        probabilities: Floats `(examples, members, classes)`.
        max_examples: Maximum number of examples.
    """
    top = probabilities.argmax(axis=2)
    class_fractions = np.stack(
        [(top == class_index).mean(axis=1) for class_index in range(probabilities.shape[2])], axis=1
    )
    disagreement = metrics.entropy(class_fractions)
    order = np.lexsort((-metrics.uncertainty_decomposition(probabilities)["mutual"], -np.round(disagreement, 9)))
    return order[disagreement[order] > 1e-9][:max_examples]


def disagreements_section(report_data: ReportData) -> tuple[Section, tuple[DisagreementExample, ...]] | None:
    """Images with the most disagreement; None if the members always agree."""
    indices = rank_by_disagreement(np.exp(report_data.predictions), MAX_SHOWN)
    if not len(indices):
        return None
    examples = tuple(
        _build_example(report_data, int(index), image)
        for index, image in zip(indices, _load_images(report_data, indices), strict=True)
    )
    top = report_data.predictions.argmax(axis=2)
    disagreement = float((top != top[:, :1]).any(axis=1).mean())
    num_correct = sum(example.correct for example in examples)
    text = (
        f"Members disagree on {format_percent(disagreement)} of the images. Of the {len(examples)} with the most"
        f" disagreement, the committee of all members classifies {num_correct} correctly."
    )
    captions = [
        [
            f"{num_members} x {predicted_class}"
            for predicted_class, num_members in Counter(
                prediction[1] for prediction in example.member_predictions
            ).most_common(4)
        ]
        for example in examples
    ]
    picture = Picture(
        "disagreements",
        text,
        lambda width: image_gallery([e.image for e in examples], [e.true_class for e in examples], captions, width),
    )
    section = Section(
        name="disagreements",
        title="Images with the most disagreement",
        blocks=(Block(sentence=text, pictures=(picture,)),),
    )
    return section, examples


def label_errors_section(report_data: ReportData) -> Section | None:
    """Images whose label is probably wrong; None if there are none."""
    predictions, labels, classes = report_data.committee_predictions, report_data.labels, report_data.classes
    found = metrics.label_errors(predictions, labels)
    if not len(found.indices):
        return None
    shown = found.indices[:MAX_SHOWN]
    images = report_data.runs[0].examples.images
    rows = tuple(
        (
            images.name(index),
            classes[labels[index]],
            classes[suggested],
            *(format_percent(float(predictions[index, column])) for column in (labels[index], suggested)),
        )
        for index, suggested in zip(shown.tolist(), found.suggested.tolist(), strict=False)
    )
    count = len(found.indices)
    text = (
        f"{count:,} of {len(labels):,} {report_data.split} images are confidently of another class than their label, by"
        " the committee of all members. The most suspicious are shown: check their labels before you blame the members."
    )
    if report_data.split == "train":
        text += " The members were trained on these images and have learned wrong labels, so few of them are found."
    pictures = [np.asarray(image) for image in _load_images(report_data, shown)]
    captions = [[f"{row[2]} {row[4]}"] for row in rows]
    gallery = Picture(
        "label-errors",
        text,
        lambda width: image_gallery(pictures, [f"labeled {row[1]}" for row in rows], captions, width),
    )
    table = Table(
        columns=("image", "label", "suggested class", "probability of the label", "of the suggestion"),
        rows=rows,
        first_numeric_column=3,
        note="`keras-committee evaluate --label-errors` writes all of them to label_errors.csv.",
    )
    block = Block(sentence=text, pictures=(gallery,), table=table)
    return Section(name="label-errors", title="Suspicious labels", blocks=(block,))


def short_names(report_data: ReportData) -> list[str]:
    """Return short member names: the index, with architecture or run where the index is ambiguous."""
    if len(report_data.runs) == 1:
        return [str(member["index"]) for member in report_data.members]
    names = [f"{member['architecture']} #{member['index']}" for member in report_data.members]
    unique = len(set(names)) == len(names)
    return names if unique else [f"{member['run']} #{member['index']}" for member in report_data.members]


def _confidence(probabilities: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    return (
        f"{probabilities.max(axis=1).mean():.4f}",
        f"{metrics.accuracy(probabilities, labels):.4f}",
        f"{metrics.ece(probabilities, labels):.4f}",
        f"{metrics.adaptive_ece(probabilities, labels):.4f}",
    )


def _reliability_row(report_data: ReportData, index: int, probabilities: np.ndarray) -> tuple[str, ...]:
    member = report_data.members[index]
    run_prefix = f"{member['run']}, " if len(report_data.runs) > 1 else ""
    return (f"{run_prefix}member {member['index']}", *_confidence(probabilities[:, index], report_data.labels))


def _reliability_sentence(name: str, predictions: np.ndarray, report_data: ReportData) -> str:
    gap = float(predictions.max(axis=1).mean()) - metrics.accuracy(predictions, report_data.labels)
    difference = f"{format_points(abs(gap))} {'above' if gap > 0 else 'below'} its accuracy"
    return (
        f"The mean confidence of all {name} together is {'equal to its accuracy' if abs(gap) < 0.005 else difference}"
        f" (ECE {metrics.ece(predictions, report_data.labels):.3f})."
    )


def _diversity_sentence(disagreement: np.ndarray, double_fault: np.ndarray, names: list[str]) -> str:
    upper = np.triu_indices(len(names), 1)
    max_index = int(np.argmax(disagreement[upper]))
    a, b = names[upper[0][max_index]], names[upper[1][max_index]]
    text = (
        f"Two members disagree on {format_percent(float(disagreement[upper].mean()))} of the images and are both wrong"
        f" on {format_percent(float(double_fault[upper].mean()))} (means over the pairs)."
    )
    pair = f" The pair {a} and {b} disagrees most: {format_percent(float(disagreement[upper][max_index]))}."
    return text + (pair if len(names) > 2 else "")


def _confusion_sentence(report_data: ReportData, errors: np.ndarray, row_fractions: np.ndarray) -> str:
    if not errors.any():
        return "The committee of all members makes no errors."
    true, predicted = np.unravel_index(int(np.argmax(errors)), errors.shape)
    hardest = int(np.argmin(np.diag(row_fractions)))
    true_name, predicted_name, hardest_name = (report_data.classes[index] for index in (true, predicted, hardest))
    return (
        f"The most frequent error of the committee of all members is to classify {true_name} as {predicted_name}"
        f" ({format_percent(float(row_fractions[true, predicted]))} of that class). Its hardest class is"
        f" {hardest_name}, {format_percent(float(row_fractions[hardest, hardest]))} correct."
    )


def _load_images(report_data: ReportData, indices: np.ndarray) -> np.ndarray:
    examples = report_data.runs[0].examples.subset(indices)
    with name_unreadable_images(examples):
        return np.asarray(next(iter(examples.batches(len(indices))))[0])


def _build_example(report_data: ReportData, index: int, image: np.ndarray) -> DisagreementExample:
    predicted = int(report_data.committee_predictions[index].argmax())
    probabilities = np.exp(report_data.predictions[index])
    return DisagreementExample(
        index=index,
        image=image,
        true_class=report_data.classes[report_data.labels[index]],
        predicted_class=report_data.classes[predicted],
        correct=predicted == report_data.labels[index],
        member_predictions=tuple(
            (
                f"#{name}" if name.isdecimal() else name,
                report_data.classes[int(member_probabilities.argmax())],
                float(member_probabilities.max()),
            )
            for name, member_probabilities in zip(short_names(report_data), probabilities, strict=True)
        ),
    )
