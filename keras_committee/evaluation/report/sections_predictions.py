"""What kind of answers are they: sure, alike, mistaken for what? Sections on calibration, diversity and confusion."""

import base64
import dataclasses
import io
from collections import Counter

import numpy as np
from PIL import Image

from keras_committee import metrics
from keras_committee.evaluation.report.layout import Block, Section, Table, format_percent, format_points
from keras_committee.evaluation.report.run_data import ReportData
from keras_committee.figures.curves import reliability_data, reliability_diagrams
from keras_committee.figures.matrices import MAX_LABELED_ROWS, heatmap, image_gallery
from keras_committee.figures.style import Picture


def reliability_section(report_data: ReportData) -> Section:
    """Is the committee right as often as it says, and are its members?"""
    probabilities = np.exp(report_data.predictions)
    panels = [
        reliability_data(
            architecture.name, probabilities[:, list(architecture.members)], predictions, report_data.labels
        )
        for architecture, predictions in zip(report_data.series, report_data.series_predictions, strict=True)
    ]
    text = " ".join(
        _reliability_sentence(one.name, said, report_data)
        for one, said in zip(report_data.series, report_data.series_predictions, strict=True)
    )
    rows = [_reliability_row(report_data, index, probabilities) for index in range(len(report_data.members))]
    rows += [
        (f"all of {one.name}", *_confidence(said, report_data.labels))
        for one, said in zip(report_data.series, report_data.series_predictions, strict=True)
    ]
    table = Table(
        columns=("who", "mean confidence", "accuracy", "ECE", "adaptive ECE"),
        rows=tuple(rows),
        note="ECE with 15 bins of equal width, adaptive ECE with 15 bins of equally many images.",
    )
    picture = Picture("reliability", text, lambda width: reliability_diagrams(panels, width))
    description = text + " Blue are the members, orange is their committee; on the dashed line confidence is accuracy."
    block = Block(sentence=description, pictures=(picture,), table=table)
    return Section(name="reliability", title="Can the confidence be trusted?", blocks=(block,))


def diversity_section(report_data: ReportData) -> Section | None:
    """How often two members differ; None for a single member."""
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
        note="" if len(rows) == len(shown) else f"The six most and the six least different of {len(rows)} pairs.",
    )
    return Section(
        name="diversity",
        title="Do the members differ?",
        blocks=(Block(sentence=text, pictures=(picture,), table=table),),
    )


def confusion_section(report_data: ReportData) -> Section:
    """What the committee of all members takes for what."""
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
    is_readable = len(report_data.classes) <= MAX_LABELED_ROWS  # of more only the most frequent confusions are told
    picture = Picture(
        "confusion",
        text,
        lambda width: heatmap(row_fractions, report_data.classes, ("true class", "answer of the committee"), 0, width),
    )
    table = Table(columns=("true class", "answer", "images", "of its class"), rows=tuple(rows), first_numeric_column=2)
    block = Block(sentence=text, pictures=(picture,) if is_readable else (), table=table if rows else None)
    return Section(name="confusion", title="What is taken for what?", blocks=(block,))


def short_names(report_data: ReportData) -> list[str]:
    """What matrices call the members: their index, with architecture or run where that alone is not clear."""
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
    comparison = f"{format_points(abs(gap))} {'surer' if gap > 0 else 'less sure'} than"
    return (
        f"All of {name} together are {'as sure as' if abs(gap) < 0.005 else comparison} they are right (ECE"
        f" {metrics.ece(predictions, report_data.labels):.3f})."
    )


def _diversity_sentence(disagreement: np.ndarray, double_fault: np.ndarray, names: list[str]) -> str:
    upper = np.triu_indices(len(names), 1)
    max_index = int(np.argmax(disagreement[upper]))
    a, b = names[upper[0][max_index]], names[upper[1][max_index]]
    text = (
        f"Two members disagree on {format_percent(float(disagreement[upper].mean()))} of the images and are both wrong on"
        f" {format_percent(float(double_fault[upper].mean()))} (means over the pairs)."
    )
    pair = f" The most different pair is {a} and {b}: {format_percent(float(disagreement[upper][max_index]))}."
    return text + (pair if len(names) > 2 else "")


def _confusion_sentence(report_data: ReportData, errors: np.ndarray, row_fractions: np.ndarray) -> str:
    if not errors.any():
        return "The committee of all members makes no mistake."
    true, predicted = np.unravel_index(int(np.argmax(errors)), errors.shape)
    hardest = int(np.argmin(np.diag(row_fractions)))
    return (
        f"The committee of all members most often takes {report_data.classes[true]} for {report_data.classes[predicted]}"
        f" ({format_percent(float(row_fractions[true, predicted]))} of that class); its hardest class is {report_data.classes[hardest]}, right"
        f" in {format_percent(float(row_fractions[hardest, hardest]))}."
    )


MAX_SHOWN = 12
_MAX_THUMBNAIL_SIDE = 256  # pixels of a side; larger images are made smaller, so that the page stays small


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisagreementExample:
    """One image of the split, and what is said of it.

    Attributes:
        index: Its place in the split.
        image: uint8 `(height, width, channels)`.
        true_class: Its class.
        predicted_class: That of the committee of all members.
        correct: Whether this is its class.
        member_predictions: For each member its short name, its answer and its probability for that.
    """

    index: int
    image: np.ndarray
    true_class: str
    predicted_class: str
    correct: bool
    member_predictions: tuple[tuple[str, str, float], ...]

    def png_url(self) -> str:
        """The image as a `data:` address."""
        thumbnail = Image.fromarray(self.image.squeeze())
        thumbnail.thumbnail((_MAX_THUMBNAIL_SIDE, _MAX_THUMBNAIL_SIDE))
        content = io.BytesIO()
        thumbnail.save(content, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def rank_by_disagreement(probabilities: np.ndarray, max_examples: int) -> np.ndarray:
    """Places of the examples that the members are most divided on, most divided first.

    Divided is the entropy of the members' top classes; among equals the mutual information of member and class counts.

    Args:
        probabilities: Probabilities `(examples, members, classes)`.
        max_examples: How many at most. Those that all members agree on are never among them.
    """
    top = probabilities.argmax(axis=2)
    class_fractions = np.stack(
        [(top == class_index).mean(axis=1) for class_index in range(probabilities.shape[2])], axis=1
    )
    disagreement = metrics.entropy(class_fractions)
    order = np.lexsort((-metrics.uncertainty_decomposition(probabilities)["mutual"], -np.round(disagreement, 9)))
    return order[disagreement[order] > 1e-9][:max_examples]


def disagreements_section(report_data: ReportData) -> tuple[Section, tuple[DisagreementExample, ...]] | None:
    """The section and its images; None where no two members ever disagree."""
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
        f"The members are not of one mind on {format_percent(disagreement)} of the images. On the {len(examples)} that divide them"
        f" most, the committee of all members is right {num_correct} times."
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
        "disputed",
        text,
        lambda width: image_gallery([e.image for e in examples], [e.true_class for e in examples], captions, width),
    )
    section = Section(
        name="disputed", title="What the members disagree on", blocks=(Block(sentence=text, pictures=(picture,)),)
    )
    return section, examples


def _load_images(report_data: ReportData, indices: np.ndarray) -> np.ndarray:
    batches = report_data.runs[0].examples.subset(indices).batches(len(indices))
    return next(iter(batches))[0].numpy()


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
