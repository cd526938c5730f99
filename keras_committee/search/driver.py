"""Which member should be trained next, and when is the budget spent?

Optuna proposes values for knobs of the recipe; each proposal is one member, trained by the ordinary trainer in a run
folder of its own. Its value is what the committee gains by it on validation. The study lies in `optuna.log` of the
search's folder: the same command goes on with an unfinished member, then with the next proposal, until the budget is
spent. The run folders are a pool that `select` reads.

Gains shrink as the committee grows, so late members look worse to Optuna than early ones of the same knobs. That turns
it towards what is not there yet, which is what a committee wants.
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

from keras_committee.errors import DivergedError, IncompleteError, RunError
from keras_committee.evaluation import Objective, load_or_compute_predictions
from keras_committee.evaluation.committee_search import Candidates, search_committees
from keras_committee.files import file_lock, translate_os_errors
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.search.budget import Budget, MemberCost, training_gflops, training_minutes
from keras_committee.search.search_space import ParameterRange
from keras_committee.training import train_committee

MAX_REJECTED_PROPOSALS = 20  # proposals in a row that are too dear for what is left of the budget

_NUM_STARTUP_TRIALS = 5  # proposals before Optuna models the gains


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
    """Proposes and trains members until the budget is spent.

    Args:
        recipe_file: The recipe that is varied. It has the knobs `members` and `seed`.
        parameters: All its knobs; those in `ranges` are replaced, and the seed is raised by one for each member.
        ranges: What is varied.
        budget: For all members together. It may be raised, to go on.
        out: The folder of the search.
        command: What the run folders say that they were made by.
        report: Is given a line on each member.

    Returns:
        `{"folder", "runs", "members", "gflops_images", "minutes", "best_nll"}`: each of the members is
        `{"run", "knobs", "gflops_images", "minutes", "gain"}`.

    Raises:
        RunError: If the folder belongs to another search, or is in use.
        RecipeError: If the recipe does not build with the proposed knobs.
        Interrupted: If training was asked to stop. The same search goes on from there.
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
        storage = JournalStorage(JournalFileBackend(str(self.out / "optuna.log")))
        self.study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        self._require_same_search()
        self._predictions: dict[int, np.ndarray] = {}
        self._labels = np.zeros(0, np.int32)

    def run(self) -> dict[str, Any]:
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if "gflops" not in trial.user_attrs:  # killed while it was being proposed
                self.study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._train(trial.number, self._trial_parameters(trial))
        while (proposal := self._next_affordable_trial()) is not None:
            self._train(proposal.number, self._trial_parameters(proposal))
        return self._summary()

    def _require_same_search(self) -> None:
        """Records what is searched, or refuses a folder that was made by another search."""
        ranges = {
            parameter_range.parameter: [parameter_range.kind, *parameter_range.values]
            for parameter_range in self.ranges
        }
        fixed = {name: value for name, value in self.parameters.items() if name not in ranges}
        plan = json.loads(json.dumps({"ranges": ranges, "knobs": fixed, "source": self.recipe_file.source}))
        recorded_plan = self.study.user_attrs.get("plan")
        if recorded_plan is None:
            self.study.set_user_attr("plan", plan)
        elif recorded_plan != plan:
            changed = [key for key in plan if plan[key] != recorded_plan[key]]
            raise RunError(
                f"{self.out} belongs to another search: other {', '.join(changed)}.\n"
                "  Nothing was touched. Name another --out folder; `select` takes the members of both."
            )

    def _next_affordable_trial(self) -> optuna.trial.FrozenTrial | None:
        """The next proposal that fits into what is left; None where there is none."""
        for _ in range(MAX_REJECTED_PROPOSALS):
            # A sampler of its own for each proposal: what comes next does not depend on how often it was interrupted.
            seed = self.parameters["seed"] + len(self.study.trials)
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_NUM_STARTUP_TRIALS)
            spent = self._member_costs()
            trial = self.study.ask()
            proposed = {parameter_range.parameter: parameter_range.propose(trial) for parameter_range in self.ranges}
            trial.set_user_attr("knobs", proposed)
            gflops = self._training_gflops(trial.number, proposed)
            trial.set_user_attr("gflops", gflops)
            if self.budget.allows(spent, gflops):
                return self.study.trials[trial.number]
            self.study.tell(trial.number, state=TrialState.PRUNED)
        return None

    def _training_gflops(self, number: int, proposed: dict[str, Any]) -> float:
        """Of training. A recipe that refuses its knobs ends the search, and the proposal with it."""
        try:
            recipe = self.recipe_file.build(self._member_parameters(number, proposed))
            return training_gflops(recipe, len(recipe.data.load().train))
        except BaseException:
            self.study.tell(number, state=TrialState.FAIL)
            raise

    def _member_parameters(self, number: int, proposed: dict[str, Any]) -> dict[str, Any]:
        return {**self.parameters, **proposed, "members": 1, "seed": self.parameters["seed"] + number}

    def _trial_parameters(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        return self._member_parameters(trial.number, _proposed_values(trial, self.ranges))

    def _member_run(self, number: int) -> Run:
        return Run(self.out / f"member-{number:03d}")

    def _train(self, number: int, parameters: dict[str, Any]) -> None:
        description = ", ".join(
            f"{parameter_range.parameter}={parameters[parameter_range.parameter]}" for parameter_range in self.ranges
        )
        self.report(f"member {number}: {description}")
        run = Run.create(self._member_run(number).path, self.recipe_file, parameters, command=self.command)
        recipe = self.recipe_file.build(parameters)
        try:
            with run.lock():
                train_committee(run, recipe)
        except (DivergedError, IncompleteError) as error:
            self.report(f"member {number} failed: {str(error).splitlines()[0]}")
            self.study.tell(number, state=TrialState.FAIL)
            return
        before, after = self._committee_nll(excluding=number), self._committee_nll()
        self.study.tell(number, before - after)
        self.report(f"member {number}: the committee's NLL on validation went from {before:.4f} to {after:.4f}")

    def _committee_nll(self, excluding: int | None = None) -> float:
        """Of the best committee that greed finds among the members so far; of guessing where there is none."""
        self._load_new_predictions()
        predictions = [log_probs for number, log_probs in self._predictions.items() if number != excluding]
        if not predictions:
            return math.log(next(iter(self._predictions.values())).shape[1])
        candidates = Candidates(np.stack(predictions, axis=1), self._labels, [1.0] * len(predictions), "geometric_mean")
        search_committees(candidates, Objective(metric="nll"), "greedy")
        return float(candidates.table().scores["nll"].min())

    def _load_new_predictions(self) -> None:
        """Fills in the votes of the members that were finished since."""
        for trial in self.study.trials:
            run = self._member_run(trial.number)
            if trial.number not in self._predictions and run.member(0).finished:
                recipe = self.recipe_file.build(run.parameters())
                predictions = load_or_compute_predictions(run, recipe, "validation")
                self._predictions[trial.number] = predictions.log_probabilities[:, 0]
                self._labels = predictions.labels

    def _member_costs(self) -> list[MemberCost]:
        return [MemberCost(member["gflops_images"], member["minutes"]) for member in self._member_records()]

    def _member_records(self) -> list[dict[str, Any]]:
        """Of every proposal whose training has begun."""
        return [
            {
                "run": str(self._member_run(trial.number).path),
                "knobs": trial.user_attrs["knobs"],
                "gflops_images": trial.user_attrs["gflops"],
                "minutes": training_minutes(self._member_run(trial.number)),
                "gain": trial.value if trial.state == TrialState.COMPLETE else None,
            }
            for trial in self.study.trials
            if self._member_run(trial.number).path.exists()
        ]

    def _summary(self) -> dict[str, Any]:
        members = self._member_records()
        self._load_new_predictions()
        return {
            "folder": str(self.out),
            "runs": [member["run"] for member in members if member["gain"] is not None],
            "members": members,
            "gflops_images": sum(each["gflops_images"] for each in members),
            "minutes": sum(each["minutes"] for each in members),
            "best_nll": self._committee_nll() if self._predictions else None,
        }


def _proposed_values(trial: optuna.trial.FrozenTrial, ranges: Sequence[ParameterRange]) -> dict[str, Any]:
    """The knobs of a proposal, as they were proposed: tuples are tuples again."""
    suggested = {parameter_range.parameter: trial.params[parameter_range.parameter] for parameter_range in ranges}
    return {
        each.parameter: each.values[suggested[each.parameter]] if each.kind == "choice" else suggested[each.parameter]
        for each in ranges
    }
