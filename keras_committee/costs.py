"""Costs in MFLOPs that may be unknown, because a layer cannot be counted.

In documents and records an unknown cost is None (`null`). In arithmetic it is infinite: the cost of every committee
with such a member is unknown, it is within no budget, and any known cost is lower.
"""

import math
from collections.abc import Iterable, Sequence

HOW_TO_COUNT = (
    "To count a layer, define `multiply_adds(input_shape, output_shape)` on it. See docs/guides/own-layers.md."
)


def from_document(cost: float | None) -> float:
    """Return a cost for arithmetic: infinity in place of None."""
    return math.inf if cost is None else cost


def to_document(cost: float) -> float | None:
    """Return a cost for a document: None in place of infinity."""
    return cost if math.isfinite(cost) else None


def format_cost(cost: float | None, spec: str = ".2f") -> str:
    """Return the formatted cost, or "unknown"."""
    cost = from_document(cost)
    return format(cost, spec) if math.isfinite(cost) else "unknown"


def unknown_cost_note(members: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a note on the members of unknown cost, or "" if there are none.

    Args:
        members: Name of each member, and the names of its layers that cannot be counted.
    """
    lines = [f"  {member}: {', '.join(layers)}" for member, layers in members if layers]
    if not lines:
        return ""
    return "\n".join(["note: the cost is unknown, as some layers cannot be counted:", *lines, f"  {HOW_TO_COUNT}"])
