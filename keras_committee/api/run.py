"""A run: what `train` returns, and what a run folder opens as."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_committee import tables, tracking
from keras_committee.api.options import (
    MovedData,
    between,
    check_choice,
    check_conflicts,
    is_integer,
    option,
    require,
    selection_path,
    set_options,
)
from keras_committee.api.predictions import Predictions, find_images, find_run_source, predict_images
from keras_committee.api.results import WIDTH, Calibration, Evaluation, Robustness, SelectedCommittee, draw, frame
from keras_committee.choices import CORRUPTIONS, SET_METHODS, SEVERITIES, SPLITS
from keras_committee.errors import pluralize
from keras_committee.files import expand_home
from keras_committee.image_header import find_image_files
from keras_committee.keras_config import loading_backend
from keras_committee.run import Run as RunFolder
from keras_committee.run import lock_runs
from keras_committee.selection import Selection
from keras_committee.step_display import displayed

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure


class Run:
    """A run folder, which holds a recipe, its parameters and the trained members.

    It prints as the table of its members: the epoch kept and its validation scores. A run folder contains code, its
    recipe, which the methods execute: open only folders that you trust.

    Args:
        path: The run folder that `train` wrote.

    Raises:
        RunError: If `path` is not a run folder, or its record is damaged.

    Example:
        >>> run = Run("runs/digits_wrn")
        >>> run.evaluate().to_frame()
    """

    def __init__(self, path: str | Path):
        self._folder = RunFolder.open(path)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def recipe_name(self) -> str:
        """Name of the recipe."""
        return self._folder.environment()["recipe"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The recipe parameters."""
        return self._folder.parameters()

    @property
    def members(self) -> list[int]:
        """Indices of the finished members."""
        return self._folder.finished_members()

    @property
    def planned_members(self) -> int:
        """Number of members of the recipe, which is executed."""
        return self._folder.recipe().members

    @property
    def training(self) -> list[dict[str, Any]]:
        """How each finished member was trained.

        A dict has `index`, `epoch` (whose weights were kept), `epochs`, `validation_accuracy` with its
        `accuracy_interval`, `validation_nll` and `seconds`.

        Raises:
            RunError: If a history or the journal is damaged.
        """
        with loading_backend():
            from keras_committee.evaluation.training_summary import training_summary

        return training_summary(self._folder, self._folder.restore_best())

    @displayed
    def evaluate(
        self,
        *,
        split: str | None = None,
        allow_incomplete: int | None = None,
        allow_duplicate_weights: bool = False,
        label_errors: bool = False,
        measure_latency: bool = False,
        moved_data: MovedData = (),
    ) -> Evaluation:
        """Score every member and the committees of every size, and write `evaluation.json` to the run folder.

        Args:
            split: `"train"`, `"validation"` or `"test"`; None is `"test"`, or `"validation"` if there is no test split.
            allow_incomplete: Accept an incomplete run with at least this many trained members.
            allow_duplicate_weights: Accept members with identical weights.
            label_errors: List the images whose label is probably wrong.
            measure_latency: Measure the latency of each member on 1 and 32 images.
            moved_data: New paths of data that were moved, by recipe parameter: `{"data_dir": "/mnt/photos"}`, or texts
                `"data_dir=/mnt/photos"`.

        Raises:
            IncompleteError: If too few members are trained.
            DataError: If the data cannot be read.
            RunError: If the folder is in use, or the images are not those of the training.
            VerificationError: If predictions are not finite, or two members have identical weights.
        """
        check_choice("split", split, (None, *SPLITS))
        with lock_runs([self.path], set_options(moved_data)) as (folder,):
            folder.require_members(allow_incomplete)
            with loading_backend():
                from keras_committee import evaluation

            document = evaluation.evaluate(
                folder,
                folder.recipe(),
                split=split,
                min_members=allow_incomplete,
                allow_duplicate_weights=allow_duplicate_weights,
                measure_latency=measure_latency,
                label_errors=label_errors,
            )
        tracking.send([self.path])
        return Evaluation(document, self.path / "evaluation.json")

    @displayed
    def calibrate(
        self,
        *,
        coverage: float | None = None,
        method: str | None = None,
        per_class: bool = False,
        max_risk: float | None = None,
        selection: str | Path | SelectedCommittee | None = None,
        allow_incomplete: int | None = None,
        moved_data: MovedData = (),
    ) -> Calibration:
        """Fit temperatures and member weights on the validation split, and write `calibration.json` to the run folder.

        With `coverage` or `max_risk` the validation split is divided from then on: one half to choose with, and one
        half to make promises on. The rules of the promise are added to the selection file.

        Args:
            coverage: Promise that prediction sets hold the true class with at least this probability.
            method: Prediction sets: `"lac"` (the default), the smallest; `"aps"`, never empty; `"raps"`, `"aps"` with
                fewer large sets.
            per_class: Promise the coverage for the images of each class.
            max_risk: Promise that accepted answers have at most this error rate, with a certainty of 95 %.
            selection: Committee or cascade of the promise, a result of `select` or its file; None is `selection.json`
                of the run folder, or else all members.
            allow_incomplete: As in `evaluate`.
            moved_data: As in `evaluate`.

        Raises:
            RecipeError: If the arguments contradict each other, or no threshold meets the risk.
            DataError: If there is no validation split, or it has too few images.
            IncompleteError, RunError: As in `evaluate`.
        """
        is_promise = coverage is not None or max_risk is not None
        check_conflicts(
            {
                f"{option('method')} requires {option('coverage')}": method is not None and coverage is None,
                f"{option('per_class')} requires {option('coverage')}": per_class and coverage is None,
                f"{option('selection')} requires {option('coverage')} or {option('max_risk')}": (
                    selection is not None and not is_promise
                ),
            }
        )
        check_choice("method", method, (None, *SET_METHODS))
        for name, value in {"coverage": coverage, "max_risk": max_risk}.items():
            require(name, value is None or between(value, 0, 1), "a number above 0 and below 1", value)
        default_file = self.path / "selection.json"
        file = selection_path(selection) or default_file
        chosen = Selection.read(file) if is_promise and (selection is not None or default_file.exists()) else None
        runs = [self.path, *_other_runs(self.path, chosen, file)]
        with lock_runs(runs, set_options(moved_data)) as (folder, *others):
            folder.require_members(allow_incomplete)
            with loading_backend():
                from keras_committee import evaluation

            recipe, promise = folder.recipe(), None
            if is_promise:
                goal = evaluation.PromiseGoal(
                    coverage=coverage, method=method or "lac", per_class=per_class, max_risk=max_risk
                )
                chosen, promise = evaluation.make_promise(
                    [folder, *others], goal, file, chosen, min_members=allow_incomplete
                )
            document = evaluation.calibrate(folder, recipe, min_members=allow_incomplete, promise=promise)
        tracking.send([self.path])
        subject = f"the {chosen.kind} of {pluralize(len(chosen.members), 'member')} in {file}" if chosen else ""
        return Calibration(document, self.path / "calibration.json", subject)

    @displayed
    def robustness(
        self,
        *,
        corruptions: Sequence[str] = CORRUPTIONS,
        severities: Sequence[int] = SEVERITIES,
        max_examples: int = 1000,
        ood_dir: str | Path | None = None,
        seed: int = 0,
        allow_incomplete: int | None = None,
        moved_data: MovedData = (),
    ) -> Robustness:
        """Score the members on corrupted and out-of-distribution images, and write `robustness.json` to the run folder.

        Args:
            corruptions: Corruptions of the test images, of `choices.CORRUPTIONS`.
            severities: Severities of the corruptions, from 1 (mild) to 5 (severe).
            max_examples: Maximum number of test images.
            ood_dir: Folder of out-of-distribution images, in addition to generated noise and textures.
            seed: Seed of the corruptions and of the generated images.
            allow_incomplete: As in `evaluate`.
            moved_data: As in `evaluate`.

        Raises:
            RecipeError: If there is no such corruption or severity.
            DataError: If there is no test split, or the images cannot be read or are not RGB.
            IncompleteError, RunError, VerificationError: As in `evaluate`.

        Source: Hendrycks & Dietterich 2019, arXiv:1903.12261.
        """
        for corruption in corruptions:
            check_choice("corruptions", corruption, CORRUPTIONS)
        for severity in severities:
            check_choice("severities", severity, SEVERITIES)
        for name, values in {"corruptions": corruptions, "severities": severities}.items():
            require(name, values, "at least one", values)
        require("max_examples", is_integer(max_examples, 1), "a positive integer", max_examples)
        require("seed", is_integer(seed, 0), "an integer of 0 or more", seed)
        images = expand_home(ood_dir) if ood_dir is not None else None
        with lock_runs([self.path], set_options(moved_data)) as (folder,):
            folder.require_members(allow_incomplete)
            if images is not None:
                find_image_files(images)  # so that a mistyped folder fails before Keras is imported
            with loading_backend():
                from keras_committee import evaluation

            document = evaluation.robustness(
                folder,
                folder.recipe(),
                corruptions=corruptions,
                severities=severities,
                max_examples=max_examples,
                ood_dir=images,
                seed=seed,
                min_members=allow_incomplete,
            )
        return Robustness(document, self.path / "robustness.json")

    @displayed
    def predict(
        self,
        images: Any,
        *,
        selection: str | Path | SelectedCommittee | None = None,
        allow_incomplete: int | None = None,
        skip_unreadable: bool = False,
    ) -> Predictions:
        """Classify images with the members of the run.

        Args:
            images: Paths of image files of any size and of folders with such files, or one path; or uint8 pixels
                `(images, height, width, 3)`, or `(images, height, width)` in gray, which are treated as the pixels of
                such files.
            selection: A result of `select`, or its file; None combines all members.
            allow_incomplete: As in `evaluate`.
            skip_unreadable: Classify the other images where some cannot be read; they are listed in the result.

        Raises:
            DataError: If images cannot be read.
            IncompleteError: If too few members are trained.
            RunError, VerificationError: If the selection or a member cannot be used.
            RecipeError: If the selection has no member of this run.
        """
        check_conflicts(
            {
                f"{option('selection')} cannot be combined with {option('allow_incomplete')}": (
                    selection is not None and allow_incomplete is not None
                )
            }
        )
        found = find_images(images)
        load = find_run_source(self._folder, selection_path(selection), allow_incomplete)
        return predict_images(load, found, str(self.path), skip_unreadable=skip_unreadable)

    def to_frame(self) -> "pd.DataFrame":
        """Return `training` as a pandas data frame.

        Raises:
            RecipeError: If pandas is not installed.
        """
        return frame("index", self.training)

    def figure(self, width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure: training loss and validation accuracy of the members over the epochs.

        Args:
            width: In inches.

        Raises:
            RunError: If no member has a history, or one is damaged.
        """
        histories = {index: self._folder.member(index).read_history() for index in self.members}
        histories = {index: rows for index, rows in histories.items() if rows}

        def training_curves(width: float) -> "Figure":
            from keras_committee.figures.curves import training_curves

            return training_curves(histories, None, width)

        return draw("training", training_curves, width)

    def __repr__(self) -> str:
        return tables.format_blocks(self._blocks())

    def _repr_html_(self) -> str:
        return tables.blocks_to_html(self._blocks())

    def _blocks(self) -> list[tables.Block]:
        changes = ", ".join(f"{name}={value!r}" for name, value in self._changed_parameters().items())
        smoke = " (smoke run)" if self._folder.smoke else ""
        finished = pluralize(len(self.members), "member")
        heading = f"{self.path}: {finished} of {self.recipe_name}({changes}){smoke}"
        training = self.training
        return [heading, tables.training_table(training)] if training else [heading]

    def _changed_parameters(self) -> Mapping[str, Any]:
        defaults = self._folder.recipe_file().defaults
        return {name: value for name, value in self.parameters.items() if value != defaults.get(name)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __fspath__(self) -> str:
        return str(self.path)


Runs = Run | str | Path | Sequence[Run | str | Path]


def run_paths(runs: Runs) -> list[str]:
    """Return the folders of one or more runs, each once and in order. Raises RecipeError if there is none."""
    items = [runs] if isinstance(runs, Run | str | Path) else runs
    paths = list(dict.fromkeys(str(item.path if isinstance(item, Run) else expand_home(item)) for item in items))
    require("runs", paths, "at least one run", runs)
    return paths


def _other_runs(run: Path, selection: Selection | None, file: Path) -> list[str]:
    """Return the other runs of the members of a selection."""
    members = selection.members if selection is not None else ()
    others = {Path(file.parent, member.run).resolve(): str(Path(file.parent, member.run)) for member in members}
    others.pop(run.resolve(), None)
    return [*others.values()]
