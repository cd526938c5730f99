"""How did the members learn, and what did stochastic depth save? Sections on the histories of training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_committee.evaluation.report.section import Block, Section, Table, count, figures, percent, plural, points
from keras_committee.evaluation.report.sources import Gates, Source
from keras_committee.figures.curves import depth, training
from keras_committee.figures.ink import Picture


def learning_section(sources: Sequence[Source]) -> Section | None:
    """Training curves of every run; None where no run has a history."""
    blocks = tuple(_learning_block(source, len(sources) > 1) for source in sources if source.histories)
    return Section(name="learning", title="Training", blocks=blocks) if blocks else None


def depth_section(sources: Sequence[Source]) -> Section | None:
    """What stochastic depth saved; None where no run has it."""
    blocks = tuple(_depth_block(source, source.gates, sources) for source in sources if source.gates is not None)
    return Section(name="depth", title="Time saved by stochastic depth", blocks=blocks) if blocks else None


def learning_sentence(source: Source) -> str:
    """Where the members end, how far apart, and where their committee ends."""
    last = [rows[-1] for rows in source.histories.values()]
    accuracy = [row["validation_accuracy"] for row in last]
    epochs = max(row["epoch"] for row in last)
    who = "the member ends" if len(last) == 1 else f"the {count(len(last))} members end"
    text = f"After {plural(epochs, 'epoch')} {who} at {percent(float(np.mean(accuracy)))} of the validation images"
    if len(last) > 1:
        text += f", {points(max(accuracy) - min(accuracy))} apart"
    if source.so_far is not None:
        text += f"; together they get {percent(source.so_far[1][-1])} right"
    return f"{text}. They trained at {figures(_speed(source))} images a second (median over epochs and members)."


def depth_sentence(source: Source, others: Sequence[Source]) -> str:
    """Expected and realised depth, and the speed beside a run of constant depth, where there is one."""
    gates = source.gates
    if gates is None:
        return ""
    text = (
        f"Of {gates.blocks} residual blocks {realised(source):.1f} ran in a mean training step;"
        f" {gates.expected_depth:.1f} are expected, which leaves out"
        f" {percent(gates.expected_saving)} of the multiply-adds."
    )
    for other in others:
        ratio = _speed(source) / _speed(other)
        saved = f"{percent(1 - 1 / ratio)} of the time of an epoch saved" if ratio > 1 else "no time saved"
        text += f" It trained at {ratio:.2f} times the images a second of {other.name}, of constant depth: {saved}."
    return text


def realised(source: Source) -> float:
    """Residual blocks that ran in a step, the mean over epochs and members."""
    rows = [row for rows in source.histories.values() for row in rows if "realised_depth" in row]
    return float(np.mean([row["realised_depth"] for row in rows]))


def _learning_block(source: Source, several: bool) -> Block:
    text = learning_sentence(source)
    name = f"training-{file_name(source.name)}" if several else "training"
    picture = Picture(name, text, lambda width: training(source.histories, source.so_far, width))
    columns = ("member", "epochs", "training loss", "training accuracy", "validation accuracy", "NLL", "images/s")
    table = Table(
        columns=columns,
        rows=tuple(_last_row(index, rows) for index, rows in source.histories.items()),
        note="The last epoch; images/s is the median over the epochs. Training accuracy is taken on augmented images.",
    )
    return Block(sentence=text, pictures=(picture,), table=table, title=source.name if several else "")


def _depth_block(source: Source, gates: Gates, sources: Sequence[Source]) -> Block:
    others = [other for other in sources if _is_constant_twin(source, other)]
    text = depth_sentence(source, others)
    histories = {each.name: each.histories for each in (source, *others)}
    picture = Picture(
        f"depth-{file_name(source.name)}",
        text,
        lambda width: depth(histories, gates.blocks, gates.expected_depth, width),
    )
    rows = [
        (str(index), f"{np.mean([row['realised_depth'] for row in rows]):.2f}", f"{gates.expected_depth:.2f}",
         f"{np.median([row['images_per_second'] for row in rows]):.0f}")
        for index, rows in source.histories.items()
    ]  # fmt: skip
    table = Table(columns=("member", "blocks that ran", "expected", "images/s"), rows=tuple(rows))
    return Block(sentence=text, pictures=(picture,), table=table, title=source.name if len(sources) > 1 else "")


def _is_constant_twin(source: Source, other: Source) -> bool:
    """Whether `other` has the same members but for the skipping: same name, same number of weights."""
    told = [[(row["name"], row["parameters"]) for row in each.evaluation["members"][:1]] for each in (source, other)]
    return other.gates is None and bool(other.histories) and told[0] == told[1]


def _speed(source: Source) -> float:
    return float(np.median([row["images_per_second"] for rows in source.histories.values() for row in rows]))


def _last_row(index: int, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    last = rows[-1]
    return (
        str(index),
        str(last["epoch"]),
        f"{last['loss']:.4f}",
        f"{last['accuracy']:.4f}",
        f"{last['validation_accuracy']:.4f}",
        f"{last['validation_nll']:.4f}",
        f"{np.median([row['images_per_second'] for row in rows]):.0f}",
    )


def file_name(name: str) -> str:
    """`name` as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "run"
