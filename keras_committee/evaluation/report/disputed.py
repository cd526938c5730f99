"""On which images do the members disagree, and what does each say of them?"""

import base64
import dataclasses
import io
from collections import Counter

import numpy as np
from PIL import Image

from keras_committee import metrics
from keras_committee.evaluation.report.answers import short_names
from keras_committee.evaluation.report.committees import Panel
from keras_committee.evaluation.report.section import Block, Section, percent
from keras_committee.figures.ink import Picture
from keras_committee.figures.matrices import gallery

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
