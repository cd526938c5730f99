"""The report of one or more runs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_committee import tracking
from keras_committee.api.options import MovedData, check_choice, selection_path, set_options
from keras_committee.api.results import WIDTH, Result, SelectedCommittee, choose, draw
from keras_committee.api.run import Runs, run_paths
from keras_committee.choices import SPLITS
from keras_committee.files import expand_home
from keras_committee.keras_config import loading_backend
from keras_committee.run import lock_runs
from keras_committee.step_display import displayed
from keras_committee.tables import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(Result):
    """A written report: `report`, its page; `figures`, PNG files; `tensorboard`; and `sentences` by section.

    Attributes:
        path: The page.
    """

    def __init__(self, document: dict[str, Any], path: Path, pictures: Iterable[Any]):
        super().__init__(document, path)
        self._pictures = {picture.name: picture for picture in pictures}

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures."""
        return list(self._pictures)

    def figure(self, name: str = "accuracy-against-mflops", width: float = WIDTH) -> "Figure":
        """Return a Matplotlib figure of the page.

        Args:
            name: One of `figure_names`.
            width: In inches.

        Raises:
            RecipeError: If the report has no such figure.
        """
        return draw(name, choose(self._pictures, name, "figure").draw, width)

    def blocks(self) -> Iterable[Block]:
        yield f"{self['sentences']['cost']}\n"
        yield f"Report: {self.path}"


@displayed
def report(
    runs: Runs,
    *,
    out: str | Path | None = None,
    selection: str | Path | SelectedCommittee | Sequence[str | Path | SelectedCommittee] = (),
    model_card: bool = False,
    split: str | None = None,
    allow_incomplete: int | None = None,
    allow_duplicate_weights: bool = False,
    moved_data: MovedData = (),
) -> Report:
    """Write an HTML report on one or more runs.

    It shows accuracy against cost, calibration, diversity, mistakes and training curves. Missing predictions and
    evaluations are computed first. The page is self-contained; its figures are also written as PNG files and as
    TensorBoard images.

    Args:
        runs: One run, or several; a `Run` or the path of its folder.
        out: Folder of the report; None is RUN/report, or `report` beside several runs.
        selection: A result of `select`, or its file; or several.
        model_card: Whether to write `README.md`, too, a model card in the format of the Hugging Face hub: metadata with
            the scores, and a page whose open questions are marked `TODO`.
        split: As in `Run.evaluate`.
        allow_incomplete: As in `Run.evaluate`.
        allow_duplicate_weights: As in `Run.evaluate`.
        moved_data: As in `Run.evaluate`.

    Raises:
        IncompleteError: If a run has too few members.
        DataError: If data cannot be read, or the examples of the runs differ.
        RecipeError: If the classes of the runs differ.
        RunError: If a selection file is invalid, or has a member that belongs to none of the runs.
        VerificationError: If predictions are invalid, or two members of a run have identical weights.
        ResourceError: If the report cannot be written.
    """
    check_choice("split", split, (None, *SPLITS))
    selections = [selection] if isinstance(selection, str | Path | SelectedCommittee) else selection
    files = [file for file in map(selection_path, selections) if file is not None]
    with lock_runs(run_paths(runs), set_options(moved_data)) as opened:
        paths = [run.path for run in opened]
        folder = expand_home(out) if out else _default_folder(paths)
        for run in opened:
            run.require_members(allow_incomplete)
        with loading_backend():
            from keras_committee.evaluation.report import MODEL_CARD_FILE, write_report

        written = write_report(
            opened,
            folder,
            files,
            split=split,
            min_members=allow_incomplete,
            allow_duplicate_weights=allow_duplicate_weights,
            model_card=model_card,
        )
    tracking.send(paths)
    document = {
        "report": str(written.page),
        **({"model_card": str(folder / MODEL_CARD_FILE)} if model_card else {}),
        "runs": [str(path) for path in paths],
        "figures": [str(figure) for figure in written.pictures],
        "tensorboard": str(written.tensorboard),
        "sentences": written.sentences,
    }
    return Report(document, written.page, written.drawings)


def _default_folder(runs: Sequence[Path]) -> Path:
    """Return RUN/report for one run, and `report` in the common parent folder for several."""
    if len(runs) == 1:
        return runs[0] / "report"
    return Path(os.path.commonpath([run.absolute().parent for run in runs])) / "report"
