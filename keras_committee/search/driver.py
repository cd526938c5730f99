"""The search: Optuna proposes members, which are trained until the budget is spent.

Each proposal is one member, trained by the ordinary trainer in its own run folder. Its value is the decrease of the
committee's validation NLL. The Optuna study is stored in `optuna.log` in the folder of the search: the same command
resumes an unfinished member, then continues with the next proposal. The run folders form a pool for `select`.

Gains shrink as the committee grows, so late members score lower in the study than early ones with the same parameters.
This turns Optuna towards parameters that it has not tried, which suits a committee.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from keras_committee import metrics
from keras_committee.costs import from_document, to_document
from keras_committee.errors import DivergedError, IncompleteError, RunError
from keras_committee.evaluation import Objective, load_or_compute_predictions
from keras_committee.evaluation.committee_search import Candidates, search_committees
from keras_committee.files import file_lock, translate_os_errors
from keras_committee.metrics.intervals import few_images_note
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, is_moved_data, open_run, training_seconds
from keras_committee.search.budget import Budget, MemberCost, training_gflops
from keras_committee.search.search_space import ParameterRange
from keras_committee.tables import format_value
from keras_committee.training import train_committee

MAX_REJECTED_PROPOSALS = 20  # proposals in a row that exceed the remaining budget

_NUM_STARTUP_TRIALS = 5  # random proposals before Optuna models the gains
_PLAN_NAMES = {"ranges": "search space", "parameters": "recipe parameters", "source": "recipe"}


def search(
    recipe_file: RecipeFile,
    parameters: dict[str, Any],
    ranges: Sequence[ParameterRange],
    budget: Budget,
    out: Path,
    *,
    command: str,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Propose and train members until the budget is spent.

    A search that stops after some trials and continues with more proposes the same members as one without a stop.

    Args:
        recipe_file: The recipe. It has the parameters `members` and `seed`.
        parameters: All recipe parameters. Those in `ranges` are replaced, and member `i` is trained under `seed + i`.
        ranges: The search space.
        budget: Maximum training cost of all members. A larger budget continues a finished search.
        out: The folder of the search.
        command: Command line that starts and resumes the search; recorded in the run folders.
        report: Function that receives the progress messages.

    Returns:
        Dictionary with the keys
        - `"folder"`: path of `out`.
        - `"runs"`: paths of the run folders of all finished members.
        - `"members"`: `{"run", "parameters", "gflops", "minutes", "gain", "validation_accuracy", "accuracy_interval",
            "validation_nll"}` for each member whose training started; `"parameters"` are its varied parameters. The
            gain, the scores and the 95 % Wilson interval of the accuracy are None for an unfinished or diverged member.
        - `"gflops"`, `"minutes"`: training cost of all members; the GFLOPs are None if unknown.
        - `"best_nll"`: validation NLL of the best committee; None without members.

    Raises:
        RunError: If the folder belongs to another search, or is in use.
        RecipeError: If the recipe fails to build with the proposed parameters.
        Interrupted: If a signal stopped training. The same search resumes.
    """
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with file_lock(out / "lock", f"search folder {out}"):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return _Search(recipe_file, parameters, tuple(ranges), budget, out, command, report).run()


@dataclasses.dataclass
class _Search:
    recipe_file: RecipeFile
    parameters: dict[str, Any]
    ranges: tuple[ParameterRange, ...]
    budget: Budget
    out: Path
    command: str
    report: Callable[[str], None]

    def __post_init__(self):
        self._storage = JournalStorage(JournalFileBackend(str(self.out / "optuna.log")))
        self.study = self._open_study()
        self._require_same_search()
        self._predictions: dict[int, np.ndarray] = {}  # by trial: log-probabilities (examples, classes)
        self._labels = np.zeros(0, np.int32)

    def run(self) -> dict[str, Any]:
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if "gflops" not in trial.user_attrs:  # killed while it was proposed
                self.study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._train(trial)
        while (trial := self._next_affordable_trial()) is not None:
            self._train(trial)
        return self._summary()

    def _open_study(self) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage, study_name="search", direction="maximize", load_if_exists=True
        )

    def _require_same_search(self) -> None:
        """Record the search in the study, or raise if the study belongs to another search that has members."""
        ranges = {item.parameter: [item.kind, *item.values] for item in self.ranges}
        fixed = {name: value for name, value in self.parameters.items() if name not in ranges}
        source = "".join(self.recipe_file.sources().values())
        plan = json.loads(json.dumps({"ranges": ranges, "parameters": fixed, "source": source}))
        recorded_plan = self.study.user_attrs.get("plan")
        if recorded_plan == plan:
            return
        if recorded_plan is not None and not self._is_same_elsewhere(recorded_plan, plan):
            self._require_no_members(recorded_plan, plan)
            optuna.delete_study(study_name="search", storage=self._storage)
            self.study = self._open_study()
        self.study.set_user_attr("plan", plan)

    def _require_no_members(self, recorded_plan: dict[str, Any], plan: dict[str, Any]) -> None:
        if any(Run(path).has_members() for path in self.out.glob("member-*")):
            changed = [name for key, name in _PLAN_NAMES.items() if plan[key] != recorded_plan[key]]
            raise RunError(
                f"{self.out} belongs to a search with a different {' and '.join(changed)}.\n"
                "  No file was changed. Choose another --out folder; `select` accepts the members of both."
            )

    def _is_same_elsewhere(self, old: dict[str, Any], new: dict[str, Any]) -> bool:
        """Return whether two plans differ in paths of the data only."""
        before, after = old["parameters"], new["parameters"]
        changed = [name for name, value in after.items() if before.get(name, ...) != value]
        if {**old, "parameters": after} != new or before.keys() != after.keys():
            return False
        recipe = self.recipe_file.build(self.parameters)
        return all(is_moved_data(name, before, after, recipe) for name in changed)

    def _next_affordable_trial(self) -> optuna.trial.FrozenTrial | None:
        """Return the next proposal that the remaining budget allows, or None if there is none."""
        if not self.budget.allows_trial(self._member_costs()):  # nothing is proposed, so a later start goes on as if
            return None  # it had not been interrupted
        for _ in range(MAX_REJECTED_PROPOSALS):
            # A new sampler per proposal makes proposals independent of how often the search was interrupted.
            seed = self.parameters["seed"] + len(self.study.trials)
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_NUM_STARTUP_TRIALS)
            trial = self.study.ask()
            proposed = {item.parameter: item.suggest(trial) for item in self.ranges}
            trial.set_user_attr("parameters", proposed)
            gflops = self._training_gflops(trial.number, proposed)
            if self.budget.allows(self._member_costs(), gflops):
                trial.set_user_attr("gflops", gflops)
                return self.study.trials[trial.number]
            self.study.tell(trial.number, state=TrialState.PRUNED)
        return None

    def _training_gflops(self, number: int, proposed: dict[str, Any]) -> float | None:
        """Return the GFLOPs of training a proposal. If the recipe rejects its parameters, the proposal has failed."""
        try:
            recipe = self.recipe_file.build(self._member_parameters(number, proposed))
            return training_gflops(recipe, len(recipe.data.load().train))
        except BaseException:
            self.study.tell(number, state=TrialState.FAIL)
            raise

    def _member_parameters(self, number: int, proposed: dict[str, Any]) -> dict[str, Any]:
        return {**self.parameters, **proposed, "members": 1, "seed": self.parameters["seed"] + number}

    def _member_run(self, number: int) -> Run:
        return Run(self.out / f"member-{number:03d}")

    def _train(self, trial: optuna.trial.FrozenTrial) -> None:
        number, proposed = trial.number, {item.parameter: item.suggested(trial) for item in self.ranges}
        values = ", ".join(f"{name}={format_value(value)}" for name, value in proposed.items())
        self.report(f"member {number}{self._trial_count(number)}: {values}")
        parameters, path = self._member_parameters(number, proposed), self._member_run(number).path
        try:
            with open_run(self.recipe_file, parameters, path=path, command=self.command) as (run, recipe):
                train_committee(run, recipe)
        except (DivergedError, IncompleteError) as error:
            self.report(f"member {number} failed: {str(error).splitlines()[0]}")
            self.study.tell(number, state=TrialState.FAIL)
            return
        before, after = self._committee_nll(excluding=number), self._committee_nll()
        self.study.tell(number, before - after)
        self.report(f"member {number}: validation NLL of the committee: {before:.4f} -> {after:.4f}")

    def _trial_count(self, number: int) -> str:
        """Return " (trial 3 of 10)" for the proposal `number`, or "" if the number of trials is not limited."""
        if not math.isfinite(self.budget.trials):
            return ""
        earlier = sum(self._member_run(trial.number).path.exists() for trial in self.study.trials[:number])
        return f" (trial {earlier + 1} of {self.budget.trials:g})"

    def _committee_nll(self, excluding: int | None = None) -> float:
        """Return the validation NLL of the committee of greedy search; that of a uniform guess without members."""
        self._load_new_predictions()
        predictions = [log_probs for number, log_probs in self._predictions.items() if number != excluding]
        if not predictions:
            return math.log(next(iter(self._predictions.values())).shape[1])
        candidates = Candidates(np.stack(predictions, axis=1), self._labels, [1.0] * len(predictions), "geometric_mean")
        search_committees(candidates, Objective(metric="nll"), "greedy")
        return float(candidates.table().scores["nll"].min())

    def _load_new_predictions(self) -> None:
        """Load the validation predictions of the members that have finished since the last call."""
        for trial in self.study.trials:
            run = self._member_run(trial.number)
            if trial.number not in self._predictions and run.member(0).finished:
                recipe = self.recipe_file.build(run.parameters())
                predictions = load_or_compute_predictions(run, recipe, "validation")
                note = few_images_note("the parameters of further members are chosen", len(predictions.labels))
                if note and not self._predictions:  # once
                    self.report(note)
                self._predictions[trial.number] = predictions.log_probabilities[:, 0]
                self._labels = predictions.labels

    def _member_costs(self) -> list[MemberCost]:
        return [MemberCost(record["gflops"], record["minutes"]) for record in self._member_records()]

    def _member_records(self) -> list[dict[str, Any]]:
        """Return the record of each proposal whose training has started, as in the result of `search`."""
        records = []
        for trial in self.study.trials:
            run = self._member_run(trial.number)
            if run.path.exists():
                records.append(
                    {
                        "run": str(run.path),
                        "parameters": trial.user_attrs["parameters"],
                        "gflops": trial.user_attrs["gflops"],
                        "minutes": (training_seconds(run.events()) or 0.0) / 60,
                        "gain": trial.value if trial.state == TrialState.COMPLETE else None,
                        **self._member_scores(trial.number),
                    }
                )
        return records

    def _member_scores(self, number: int) -> dict[str, Any]:
        """Return the validation scores of a member whose predictions are loaded; None instead of each without them."""
        if number not in self._predictions:
            return dict.fromkeys(("validation_accuracy", "accuracy_interval", "validation_nll"))
        probabilities = np.exp(self._predictions[number])
        accuracy = metrics.accuracy(probabilities, self._labels)
        return {
            "validation_accuracy": accuracy,
            "accuracy_interval": metrics.accuracy_interval(accuracy, len(self._labels)),
            "validation_nll": metrics.nll(probabilities, self._labels),
        }

    def _summary(self) -> dict[str, Any]:
        self._load_new_predictions()
        records = self._member_records()
        return {
            "folder": str(self.out),
            "runs": [record["run"] for record in records if record["gain"] is not None],
            "members": records,
            "gflops": to_document(sum(from_document(record["gflops"]) for record in records)),
            "minutes": sum(record["minutes"] for record in records),
            "best_nll": self._committee_nll() if self._predictions else None,
        }
