"""Summary of the members of a run at the end of training."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_committee import metrics
from keras_committee.errors import RunError
from keras_committee.recipe import Recipe
from keras_committee.run import Run, training_seconds

_AS_TRAINING = {  # the events of a member that begin and end its training, as those of a run
    "member_started": "training_started",
    "member_finished": "training_finished",
    "member_failed": "training_failed",
    "member_died": "training_stopped",
    "member_stopped": "training_stopped",
}


def training_summary(run: Run, restore_best: str | None) -> list[dict[str, Any]]:
    """Return how each finished member was trained; members without a history, such as imported ones, are left out.

    Args:
        run: The run folder.
        restore_best: As in its `Recipe`.

    Returns:
        Of each member `index`; `epoch`, whose weights were kept, and `epochs`, the number trained;
        `validation_accuracy` and `validation_nll` of that epoch; `accuracy_interval`, the 95 % Wilson interval of the
        former, None if the predictions of the epoch are lost; and `seconds` of training, see
        `member_seconds`.

    Raises:
        RunError: If a history or the journal is damaged.
    """
    events = run.events()
    histories = {index: run.member(index).read_history() for index in run.finished_members()}
    return [
        {
            "index": index,
            "epoch": kept["epoch"],
            "epochs": rows[-1]["epoch"],
            "validation_accuracy": kept["validation_accuracy"],
            "accuracy_interval": _accuracy_interval(run, index, kept),
            "validation_nll": kept["validation_nll"],
            "seconds": member_seconds(events, index),
        }
        for index, rows in histories.items()
        if rows and (kept := kept_epoch(rows, restore_best))
    ]


def _accuracy_interval(run: Run, index: int, row: Mapping[str, Any]) -> dict[str, float] | None:
    member_dir = run.member(index)
    if not member_dir.epoch_predictions(row["epoch"]).exists():
        return None
    return metrics.accuracy_interval(row["validation_accuracy"], len(member_dir.read_epoch_predictions(row["epoch"])))


def kept_epoch(rows: Sequence[dict[str, Any]], restore_best: str | None) -> dict[str, Any]:
    """Return the row of the epoch whose weights a member has: the first best one, the last without `restore_best`.

    With `Recipe(swa_epoch_start=...)` it is one of the epochs with averaged weights.

    Args:
        rows: The history of the member, not empty.
        restore_best: As in `Recipe`.
    """
    if restore_best is None:
        return rows[-1]
    sign = 1 if restore_best == "accuracy" else -1
    candidates = [row for row in rows if "averaged_epochs" in row] or rows
    return max(candidates, key=lambda row: sign * row[f"validation_{restore_best}"])


def kept_epochs(run: Run, recipe: Recipe) -> dict[int, dict[str, int]]:
    """Return `epoch` and `epochs` of each member in `training_summary`; nothing if a history is damaged."""
    try:
        return {
            row["index"]: {name: row[name] for name in ("epoch", "epochs")}
            for row in training_summary(run, recipe.restore_best)
        }
    except RunError:  # the weights do not depend on it
        return {}


def member_seconds(events: Sequence[Mapping[str, Any]], index: int) -> float | None:
    """Return the wall time of a member over all its starts. What a killed process did after its last event is unknown.

    Args:
        events: The journal of a run, in order.
        index: Index of the member.

    Returns:
        Seconds; None if the journal has no start of the member.
    """
    own = [event for event in events if event.get("member") == index or event["event"] == "training_stopped"]
    return training_seconds([{**event, "event": _AS_TRAINING.get(event["event"], event["event"])} for event in own])
