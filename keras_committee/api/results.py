"""Results of the steps: the JSON document of a command, which prints as the tables of the command.

Figures are Matplotlib figures; pandas frames need pandas, which nothing else here does.
"""

import abc
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from keras_committee import tables
from keras_committee.errors import RecipeError, pluralize
from keras_committee.tables import Block, format_accuracy

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure

WIDTH = 7.6  # inches, of a figure


class Result(Mapping[str, Any], abc.ABC):
    """A document of a command, readable as a dict. It prints as tables, in a notebook as HTML.

    Attributes:
        document: The document, of JSON values, as with `--json`.
        path: The file or folder that was written.
    """

    def __init__(self, document: Mapping[str, Any], path: Path):
        self.document, self.path = dict(document), path

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.document)

    def __len__(self) -> int:
        return len(self.document)

    @abc.abstractmethod
    def blocks(self) -> Iterable[Block]:
        """Return the tables and paragraphs of the command."""

    def __repr__(self) -> str:
        return tables.format_blocks(self.blocks())

    def _repr_html_(self) -> str:
        return tables.blocks_to_html(self.blocks())


class Evaluation(Result):
    """Scores of the members of a run and of its committees of each size: the content of `evaluation.json`."""

    def blocks(self) -> Iterable[Block]:
        return tables.evaluation_blocks(self.document)

    def to_frame(self, table: str = "members") -> "pd.DataFrame":
        """Return a pandas data frame.

        Args:
            table: `"members"`, `"committees"` (means over the subsets of each size) or `"classes"`.

        Raises:
            RecipeError: If pandas is not installed, or there is no such table.
        """
        rows = {
            "members": ("index", self["members"]),
            "committees": ("size", [_means(row) for row in self["committees"]]),
            "classes": ("class", self["per_class"]),
        }
        return frame(*choose(rows, table, "table"))

    def figure(self, name: str = "confusion", width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure of the committee of all members.

        Args:
            name: `"confusion"`, the confusion matrix of up to twenty classes, or `"risk-coverage"`, the error rate over
                the fraction of answers that are accepted.
            width: In inches.

        Raises:
            RecipeError: If there is no such figure.
        """
        drawn: dict[str, Callable[[float], Figure]] = {"risk-coverage": self._draw_risk_coverage}
        if "confusion_matrix" in self:
            drawn["confusion"] = self._draw_confusion
        return draw(name, choose(drawn, name, "figure"), width)

    def _draw_confusion(self, width: float) -> "Figure":
        import numpy as np

        from keras_committee.figures.matrices import confusion_heatmap

        matrix = np.array(self["confusion_matrix"])
        names = [row["class"] for row in self["per_class"]]
        return confusion_heatmap(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), names, width)

    def _draw_risk_coverage(self, width: float) -> "Figure":
        from keras_committee.figures.curves import risk_coverage_curves

        curve = self["risk_coverage"]
        name = f"committee of {len(self['members'])}"
        return risk_coverage_curves({name: (curve["coverage"], curve["risk"])}, width)


class SelectedCommittee(Result):
    """The selected committee or cascade: the content of `selection.json`, with its `file` and `kind`."""

    @property
    def kind(self) -> str:
        """`"committee"` or `"cascade"`."""
        return self["kind"]

    def blocks(self) -> Iterable[Block]:
        return tables.selection_blocks(self.document)

    def to_frame(self, table: str = "selected") -> "pd.DataFrame":
        """Return a pandas data frame of committees: MFLOPs, and accuracy and NLL on both splits.

        Args:
            table: `"selected"`, the rows of the printed table, or `"front"`, the Pareto front on the validation split.

        Raises:
            RecipeError: If pandas is not installed, or there is no such table.
        """
        report = self["report"]
        committees = {f"selected {self.kind}": report, "best member": report["best_member"]}
        if "cascade" in report:
            committees["best committee"] = report["cascade"]["committee"]
        rows = {
            "selected": ("committee", [{"committee": name, **_costs(each)} for name, each in committees.items()]),
            "front": (None, [_costs(each) for each in report["front"]]),
        }
        return frame(*choose(rows, table, "table"))

    def figure(self, width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure: validation accuracy against MFLOPs of the Pareto front and of the selected one.

        Args:
            width: In inches.
        """
        return draw("front", self._draw_front, width)

    def _draw_front(self, width: float) -> "Figure":
        from keras_committee.figures.curves import accuracy_front

        report = self["report"]
        selected = (report["mflops"], _score(report["validation"]["accuracy"]))
        points = [(each["mflops"], each["validation"]["accuracy"]) for each in report["front"]]
        return accuracy_front(
            [(_number(cost), accuracy) for cost, accuracy in points], (_number(selected[0]), selected[1]),
            self.kind, width,
        )  # fmt: skip


class Calibration(Result):
    """Temperatures and member weights, and what was promised: the content of `calibration.json`."""

    def __init__(self, document: Mapping[str, Any], path: Path, subject: str = ""):
        super().__init__(document, path)
        self._subject = subject

    def blocks(self) -> Iterable[Block]:
        committee = self["committee"]
        after_labels = {
            "member_temperatures": "one per member",
            "temperature": f"{committee['temperature']:.3f}",
            "weights": "1, weighted",
        }
        rows = []
        for member in self["members"]:
            rows.append([f"member {member['index']}", "1", *_score_cells(member["before"])])
            rows.append(["", f"{member['temperature']:.3f}", *_score_cells(member["after"])])
        rows.append(["committee", "1", *_score_cells(committee["before"])])
        rows += [["", after_labels[name], *_score_cells(after)] for name, after in committee["after"].items()]
        weights = " ".join(f"{weight:.3f}" for weight in committee["weights"])
        note = f"Accuracy with its 95 % interval over the images. Head: {self['head'].replace('_', ' ')}. "
        columns = ["", "temperature", "accuracy", "NLL", "ECE"]
        yield tables.Table(columns, rows, f"{note}Fitted weights: {weights}. ")
        for warning in self["notes"]:
            yield f"{warning}\n"
        if self["promise"] is not None:
            yield from _promise_blocks(self["promise"], self._subject)

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas data frame: scores of the members and of the committee before and after calibration.

        Raises:
            RecipeError: If pandas is not installed.
        """
        committee = self["committee"]
        rows = [
            {"name": f"member {member['index']}", "calibration": calibration, **member[when]}
            for member in self["members"]
            for calibration, when in (("none", "before"), ("temperature", "after"))
        ]
        rows.append({"name": "committee", "calibration": "none", **committee["before"]})
        rows += [{"name": "committee", "calibration": name, **after} for name, after in committee["after"].items()]
        return frame(["name", "calibration"], rows)

    def figure(self, width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure: accuracy over confidence of the committee, before and after its temperature.

        Args:
            width: In inches.
        """
        return draw("reliability", self._draw_reliability, width)

    def _draw_reliability(self, width: float) -> "Figure":
        from keras_committee.figures.curves import reliability_diagrams

        panels = []
        for when, curve in self["reliability"].items():
            filled = [index for index, count in enumerate(curve["count"]) if count]
            points = tuple([curve[name][index] for index in filled] for name in ("confidence", "accuracy"))
            panels.append((f"{when} calibration", [], points))
        return reliability_diagrams(panels, width)


class Robustness(Result):
    """Accuracy on corrupted images, and detection of out-of-distribution images: the content of `robustness.json`."""

    def blocks(self) -> Iterable[Block]:
        return tables.robustness_blocks(self.document)

    def to_frame(self, table: str = "corruptions") -> "pd.DataFrame":
        """Return a pandas data frame.

        Args:
            table: `"corruptions"`, the scores of the committee and the mean accuracy of its members by kind and
                severity; or `"ood"`, the AUROC and FPR95 of each source of out-of-distribution images.

        Raises:
            RecipeError: If pandas is not installed, or there is no such table.
        """
        corruptions = [
            {
                **{name: row[name] for name in ("kind", "severity", "committee")},
                "mean_member_accuracy": fmean(member["accuracy"] for member in row["members"]),
            }
            for row in self["corruptions"]
        ]
        rows = {"corruptions": (["kind", "severity"], corruptions), "ood": ("source", self["foreign"])}
        return frame(*choose(rows, table, "table"))

    def figure(self, width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure: accuracy over the severity of the committee and of its mean member.

        Args:
            width: In inches.
        """
        return draw("robustness", self._draw_curves, width)

    def _draw_curves(self, width: float) -> "Figure":
        from keras_committee.evaluation.report.sections_runs import accuracy_by_severity
        from keras_committee.figures.curves import robustness_curves

        return robustness_curves(accuracy_by_severity(self.document), width)


class Export(Result):
    """A published version of an exported committee or cascade: the content of `committee.json`, with its `version`.

    Attributes:
        path: The folder of the version; its parent is the model folder.
    """

    def blocks(self) -> Iterable[Block]:
        members, verified = self["members"], self["verified"]
        yield f"Exported a {self['kind']} of {pluralize(len(members), 'member')} to {self.path}"
        runtime = f" in {verified['runtime']}" if self["model_format"] != "saved-model" else ""
        difference = f"{verified['largest_difference']:.1e}"
        yield f"Verified {verified['outputs']} outputs{runtime}; largest difference {difference}."
        yield from _precision_lines(self["precision"])


class Push(Result):
    """A written folder of the Hugging Face hub: `folder`, the `version` in it, and its model `card`.

    Attributes:
        path: The folder.
    """

    def blocks(self) -> Iterable[Block]:
        yield f"Wrote {self['version']} to {self.path}"
        if self["card_kept"]:
            yield f"{self['card']} was edited and is kept."


def frame(index: str | list[str] | None, rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return a pandas data frame of rows, with a column for each bound of an interval: `accuracy_interval_low`.

    Raises:
        RecipeError: If pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
        raise RecipeError("to_frame needs the package pandas: pip install pandas")
    import pandas as pd  # pyright: ignore[reportMissingImports]

    table = pd.DataFrame([_flat(row) for row in rows])
    return table if index is None else table.set_index(index)


def draw(name: str, make: Callable[[float], "Figure"], width: float) -> "Figure":
    """Return a figure in the style of the reports. In a notebook it can be the last line of a cell."""
    from keras_committee.figures.style import Picture

    return Picture(name, "", make).figure(width)


def choose(options: Mapping[str, Any], name: str, noun: str) -> Any:
    """Return the option of this name. Raises RecipeError if there is none."""
    if name not in options:
        raise RecipeError(f"there is no {noun} {name!r}. Choose one of: {', '.join(sorted(options))}")
    return options[name]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with an item for each number of a dict in it, and without lists."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{key}": inner for key, inner in _flat(value).items()}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _means(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a committee size with the mean and the standard deviation of each score."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        is_spread = isinstance(value, Mapping) and "mean" in value
        flat |= {name: value["mean"], f"{name}_std": value["std"]} if is_spread else {name: value}
    return flat


def _costs(committee: Mapping[str, Any]) -> dict[str, Any]:
    scores = {
        f"{split}_{name}": _score(committee[split][name])
        for split in ("validation", "test")
        for name in ("accuracy", "nll")
    }
    return {"members": len(committee["members"]), "mflops": _number(committee["mflops"]), **scores}


def _score(score: Any) -> float:
    """Return a score, which has a bootstrap interval in the selected committee."""
    return score["value"] if isinstance(score, Mapping) else score


def _number(cost: float | None) -> float:
    return math.nan if cost is None else cost


def _score_cells(scores: Mapping[str, Any]) -> list[str]:
    accuracy = format_accuracy(scores["accuracy"], scores["accuracy_interval"])
    return [accuracy, f"{scores['nll']:.4f}", f"{scores['ece']:.4f}"]


def _promise_blocks(promise: Mapping[str, Any], subject: str) -> Iterator[Block]:
    test = promise["test"]
    on_test = f"On {test['examples']:,} test images"
    yield (f"Promise for {subject}, on {promise['examples']:,} validation images that nothing was chosen with:")
    if sets := promise["sets"]:
        interval, scope = promise["coverage_interval"], "of each class " if len(sets["thresholds"]) > 1 else ""
        yield (
            f"  {sets['method'].upper()} sets hold the true class of new images {scope}with a probability of at least"
            f" {sets['coverage']:g}; with so many images, 95 % of such promises cover {interval['low']:.4f} to"
            f" {interval['high']:.4f}. {on_test}: {format_accuracy(test['coverage'], test['coverage_interval'])},"
            f" {test['mean_set_size']:.3f} classes per set."
        )
    if acceptance := promise["acceptance"]:
        fit = promise["acceptance_fit"]
        observed = "no answer is accepted"
        if test["risk"] is not None:
            error = format_accuracy(test["risk"], test["risk_interval"])
            observed = f"{100 * test['accepted']:.1f} % are accepted, with an error rate of {error}"
        yield (
            f"  Answers with a confidence of at least {acceptance['threshold']:.6g} have an error rate of at most"
            f" {acceptance['max_risk']:g} with a certainty of {100 * acceptance['certainty']:g} %:"
            f" {100 * fit['coverage']:.1f} % of the answers. {on_test} {observed}."
        )
    for note in promise["notes"]:
        yield f"{note}\n"


def _precision_lines(precision: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the precision of an export; none for the default."""
    if precision["accuracy"] is None:
        if precision["reason"] != "the default":
            yield f"Computes in {precision['compute']}: {precision['reason']}."
        return
    accuracy, drop = precision["accuracy"], precision["accuracy"]["drop"]
    changed = accuracy["stops_changed"]
    stops = "" if changed is None else f" {100 * changed:.1f} % of them use another number of members."
    yield f"Computes in bfloat16 ({precision['reason']}), which is fast on {precision['hardware']}."
    yield (
        f"Accuracy on {accuracy['examples']:,} validation images: {100 * accuracy['accuracy']:.2f} %, in float32 "
        f"{100 * accuracy['float32_accuracy']:.2f} %; the loss is {drop['value']:.2f} points, 95 % interval "
        f"{drop['low']:.2f} to {drop['high']:.2f}.{stops}"
    )
