"""The steps of the command line as functions, from `describe` and `train` to `export` and `push`.

Each command calls the function of its name; an option such as `--allow-incomplete 2` is the argument
`allow_incomplete=2`. Errors are `CommitteeError`s with the messages of the commands. Progress is displayed below the
cell of a notebook, on a terminal, or as lines on stderr.
"""

from keras_committee.api.description import Description, describe
from keras_committee.api.imports import Import, import_models
from keras_committee.api.predictions import ExportedModel, Predictions, load_export
from keras_committee.api.reports import Report, report
from keras_committee.api.results import Calibration, Evaluation, Export, Push, Robustness, SelectedCommittee
from keras_committee.api.run import Run
from keras_committee.api.searches import Search, search
from keras_committee.api.steps import export, push, select
from keras_committee.api.training import train

__all__ = [
    "Calibration",
    "Description",
    "Evaluation",
    "Export",
    "ExportedModel",
    "Import",
    "Predictions",
    "Push",
    "Report",
    "Robustness",
    "Run",
    "Search",
    "SelectedCommittee",
    "describe",
    "export",
    "import_models",
    "load_export",
    "push",
    "report",
    "search",
    "select",
    "train",
]
