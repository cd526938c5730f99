"""Building blocks of the report, and formatting of numbers and text."""

import dataclasses
import math
from collections.abc import Sequence

from keras_committee.figures.style import Picture
from keras_committee.metrics import accuracy_interval

MFLOPS_NOTE = "MFLOPs: 2 x multiply-adds / 1e6, for one image."
_NUMBER_WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Table of text; columns from `first_numeric_column` on are right-aligned."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    first_numeric_column: int = 1
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Figures with a description and a table of their numbers."""

    sentence: str
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its blocks."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def format_percent(fraction: float, digits: int = 1) -> str:
    """Format a fraction: "82.2 %"."""
    return f"{100 * fraction:.{digits}f} %"


def format_points(fraction: float, digits: int = 1) -> str:
    """Format a difference of fractions: "1.9 points"."""
    number = f"{100 * fraction:.{digits}f}"
    return f"{number} {'point' if float(number) == 1 else 'points'}"


def format_mflops(value: float) -> str:
    """Format with three significant digits: "160 MFLOPs"; "an unknown cost" for an infinite one."""
    if math.isinf(value):
        return "an unknown cost"
    return f"{format_significant(value)} MFLOPs"


def format_significant(value: float, digits: int = 3) -> str:
    """Format with significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def number_word(number: int) -> str:
    """Return the number as a word up to twelve, else as digits."""
    return _NUMBER_WORDS[number] if number < len(_NUMBER_WORDS) else f"{number:,}"


def count_with_noun(number: int, noun: str) -> str:
    """Format a count with its noun: "three members", "one member"."""
    return f"{number_word(number)} {noun if number == 1 else noun + 's'}"


def format_mean_std(score: dict[str, float], digits: int = 4) -> str:
    """Format a score: "0.8200 ± 0.0012", without deviation if there is only one subset."""
    mean = f"{score['mean']:.{digits}f}"
    return mean if score["subsets"] == 1 else f"{mean} ± {score['std']:.{digits}f}"


def format_interval(accuracy: float, examples: int) -> str:
    """Format the 95 % interval of an accuracy over the examples: "[0.805, 0.967]"."""
    interval = accuracy_interval(accuracy, examples)
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def capitalize_first(text: str) -> str:
    """Capitalize the first letter only."""
    return text[:1].upper() + text[1:]


def join_with_and(names: Sequence[str]) -> str:
    """Join names: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
