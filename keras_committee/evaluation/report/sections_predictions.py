"""What kind of answers are they: sure, alike, mistaken for what? Sections on calibration, diversity and confusion."""

import base64
import dataclasses
import io
from collections import Counter

import numpy as np
from PIL import Image

from keras_committee import metrics
from keras_committee.evaluation.report.layout import Block, Section, Table, percent, points
from keras_committee.evaluation.report.run_data import Panel
from keras_committee.figures.curves import reliability, reliability_panel
from keras_committee.figures.matrices import MOST_NAMES, gallery, square
from keras_committee.figures.style import Picture


def reliability_section(panel: Panel) -> Section:
    """Is the committee right as often as it says, and are its members?"""
    probabilities = np.exp(panel.votes)
    panels = [
        reliability_panel(one.name, probabilities[:, list(one.members)], said, panel.labels)
        for one, said in zip(panel.series, panel.said, strict=True)
    ]
    text = " ".join(
        _reliability_sentence(one.name, said, panel) for one, said in zip(panel.series, panel.said, strict=True)
    )
    rows = [_reliability_row(panel, place, probabilities) for place in range(len(panel.members))]
    rows += [
        (f"all of {one.name}", *_sureness(said, panel.labels))
        for one, said in zip(panel.series, panel.said, strict=True)
    ]
    table = Table(
        columns=("who", "mean confidence", "accuracy", "ECE", "adaptive ECE"),
        rows=tuple(rows),
        note="ECE with 15 bins of equal width, adaptive ECE with 15 bins of equally many images.",
    )
    picture = Picture("reliability", text, lambda width: reliability(panels, width))
    seen = text + " Blue are the members, orange is their committee; on the dashed line confidence is accuracy."
    block = Block(sentence=seen, pictures=(picture,), table=table)
    return Section(name="reliability", title="Can the confidence be trusted?", blocks=(block,))


def diversity_section(panel: Panel) -> Section | None:
    """How often two members differ; None for a single member."""
    if len(panel.members) < 2:
        return None
    probabilities = np.exp(panel.votes)
    differ, fault = metrics.disagreement(probabilities), metrics.double_fault(probabilities, panel.labels)
    names = short_names(panel)
    text = _diversity_sentence(differ, fault, names)
    picture = Picture("disagreement", text, lambda width: square(differ, names, ("member", "member"), 1, width))
    pairs = zip(*np.triu_indices(len(names), 1), strict=True)
    rows = sorted(((differ[a, b], fault[a, b], names[a], names[b]) for a, b in pairs), reverse=True)
    shown = rows if len(rows) <= 12 else [*rows[:6], *rows[-6:]]
    table = Table(
        columns=("member", "member", "disagree on", "both wrong on"),
        rows=tuple((a, b, percent(d, 2), percent(f, 2)) for d, f, a, b in shown),
        numbers=2,
        note="" if len(rows) == len(shown) else f"The six most and the six least different of {len(rows)} pairs.",
    )
    return Section(
        name="diversity",
        title="Do the members differ?",
        blocks=(Block(sentence=text, pictures=(picture,), table=table),),
    )


def confusion_section(panel: Panel) -> Section:
    """What the committee of all members takes for what."""
    matrix = metrics.confusion_matrix(panel.committee, panel.labels)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    off = matrix * (1 - np.eye(len(matrix), dtype=int))
    places = [divmod(int(place), len(matrix)) for place in np.argsort(-off, axis=None, kind="stable")[:8]]
    rows = [
        (panel.classes[true], panel.classes[said], f"{off[true, said]:,}", percent(shares[true, said]))
        for true, said in places
        if off[true, said]
    ]
    text = _confusion_sentence(panel, off, shares)
    draws = len(panel.classes) <= MOST_NAMES  # of more only the most frequent confusions are told
    picture = Picture(
        "confusion",
        text,
        lambda width: square(shares, panel.classes, ("true class", "answer of the committee"), 0, width),
    )
    table = Table(columns=("true class", "answer", "images", "of its class"), rows=tuple(rows), numbers=2)
    block = Block(sentence=text, pictures=(picture,) if draws else (), table=table if rows else None)
    return Section(name="confusion", title="What is taken for what?", blocks=(block,))


def short_names(panel: Panel) -> list[str]:
    """What matrices call the members: their index, with architecture or run where that alone is not clear."""
    if len(panel.sources) == 1:
        return [str(member["index"]) for member in panel.members]
    names = [f"{member['architecture']} #{member['index']}" for member in panel.members]
    clear = len(set(names)) == len(names)
    return names if clear else [f"{member['run']} #{member['index']}" for member in panel.members]


def _sureness(probabilities: np.ndarray, labels: np.ndarray) -> tuple[str, ...]:
    return (
        f"{probabilities.max(axis=1).mean():.4f}",
        f"{metrics.accuracy(probabilities, labels):.4f}",
        f"{metrics.ece(probabilities, labels):.4f}",
        f"{metrics.adaptive_ece(probabilities, labels):.4f}",
    )


def _reliability_row(panel: Panel, place: int, probabilities: np.ndarray) -> tuple[str, ...]:
    member = panel.members[place]
    run = f"{member['run']}, " if len(panel.sources) > 1 else ""
    return (f"{run}member {member['index']}", *_sureness(probabilities[:, place], panel.labels))


def _reliability_sentence(name: str, said: np.ndarray, panel: Panel) -> str:
    gap = float(said.max(axis=1).mean()) - metrics.accuracy(said, panel.labels)
    apart = f"{points(abs(gap))} {'surer' if gap > 0 else 'less sure'} than"
    return (
        f"All of {name} together are {'as sure as' if abs(gap) < 0.005 else apart} they are right (ECE"
        f" {metrics.ece(said, panel.labels):.3f})."
    )


def _diversity_sentence(differ: np.ndarray, fault: np.ndarray, names: list[str]) -> str:
    upper = np.triu_indices(len(names), 1)
    most = int(np.argmax(differ[upper]))
    a, b = names[upper[0][most]], names[upper[1][most]]
    text = (
        f"Two members disagree on {percent(float(differ[upper].mean()))} of the images and are both wrong on"
        f" {percent(float(fault[upper].mean()))} (means over the pairs)."
    )
    pair = f" The most different pair is {a} and {b}: {percent(float(differ[upper][most]))}."
    return text + (pair if len(names) > 2 else "")


def _confusion_sentence(panel: Panel, off: np.ndarray, shares: np.ndarray) -> str:
    if not off.any():
        return "The committee of all members makes no mistake."
    true, said = np.unravel_index(int(np.argmax(off)), off.shape)
    hardest = int(np.argmin(np.diag(shares)))
    return (
        f"The committee of all members most often takes {panel.classes[true]} for {panel.classes[said]}"
        f" ({percent(float(shares[true, said]))} of that class); its hardest class is {panel.classes[hardest]}, right"
        f" in {percent(float(shares[hardest, hardest]))}."
    )


SHOWN = 12
_LARGEST = 256  # pixels of a side; larger images are made smaller, so that the page stays small


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One image of the split, and what is said of it.

    Attributes:
        place: Its place in the split.
        image: uint8 `(height, width, channels)`.
        truth: Its class.
        answer: That of the committee of all members.
        right: Whether this is its class.
        votes: For each member its short name, its answer and its probability for that.
    """

    place: int
    image: np.ndarray
    truth: str
    answer: str
    right: bool
    votes: tuple[tuple[str, str, float], ...]

    def png_url(self) -> str:
        """The image as a `data:` address."""
        picture = Image.fromarray(self.image.squeeze())
        picture.thumbnail((_LARGEST, _LARGEST))
        content = io.BytesIO()
        picture.save(content, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def most_disputed(votes: np.ndarray, examples: int) -> np.ndarray:
    """Places of the examples that the members are most divided on, most divided first.

    Divided is the entropy of the members' top classes; among equals the mutual information of member and class counts.

    Args:
        votes: Probabilities `(examples, members, classes)`.
        examples: How many at most. Those that all members agree on are never among them.
    """
    top = votes.argmax(axis=2)
    shares = np.stack([(top == kind).mean(axis=1) for kind in range(votes.shape[2])], axis=1)
    divided = metrics.entropy(shares)
    order = np.lexsort((-metrics.uncertainty(votes)["mutual"], -np.round(divided, 9)))
    return order[divided[order] > 1e-9][:examples]


def disputed_section(panel: Panel) -> tuple[Section, tuple[Example, ...]] | None:
    """The section and its images; None where no two members ever disagree."""
    chosen = most_disputed(np.exp(panel.votes), SHOWN)
    if not len(chosen):
        return None
    examples = tuple(
        _example(panel, int(place), image) for place, image in zip(chosen, _images(panel, chosen), strict=True)
    )
    top = panel.votes.argmax(axis=2)
    divided = float((top != top[:, :1]).any(axis=1).mean())
    right = sum(example.right for example in examples)
    text = (
        f"The members are not of one mind on {percent(divided)} of the images. On the {len(examples)} that divide them"
        f" most, the committee of all members is right {right} times."
    )
    said = [
        [f"{number} x {answer}" for answer, number in Counter(v[1] for v in each.votes).most_common(4)]
        for each in examples
    ]
    picture = Picture(
        "disputed", text, lambda width: gallery([e.image for e in examples], [e.truth for e in examples], said, width)
    )
    section = Section(
        name="disputed", title="What the members disagree on", blocks=(Block(sentence=text, pictures=(picture,)),)
    )
    return section, examples


def _images(panel: Panel, places: np.ndarray) -> np.ndarray:
    batches = panel.sources[0].examples.take(places).batches(len(places))
    return next(iter(batches))[0].numpy()


def _example(panel: Panel, place: int, image: np.ndarray) -> Example:
    answer = int(panel.committee[place].argmax())
    votes = np.exp(panel.votes[place])
    return Example(
        place=place,
        image=image,
        truth=panel.classes[panel.labels[place]],
        answer=panel.classes[answer],
        right=answer == panel.labels[place],
        votes=tuple(
            (f"#{name}" if name.isdecimal() else name, panel.classes[int(vote.argmax())], float(vote.max()))
            for name, vote in zip(short_names(panel), votes, strict=True)
        ),
    )
