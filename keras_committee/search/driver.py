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
from keras_committee.evaluation import Goal, cast_votes
from keras_committee.evaluation.committee_search import Candidates, look
from keras_committee.files import owned, writing
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.search.budget import Budget, Spent, minutes_trained, training_gflops
from keras_committee.search.search_space import Range
from keras_committee.training import train_committee

MOST_REFUSED = 20  # proposals in a row that are too dear for what is left of the budget

_STARTED_AT_RANDOM = 5  # proposals before Optuna models the gains


def search(
    recipe_file: RecipeFile,
    knobs: dict[str, Any],
    ranges: Sequence[Range],
    budget: Budget,
    out: Path,
    *,
    command: str,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Proposes and trains members until the budget is spent.

    Args:
        recipe_file: The recipe that is varied. It has the knobs `members` and `seed`.
        knobs: All its knobs; those in `ranges` are replaced, and the seed is raised by one for each member.
        ranges: What is varied.
        budget: For all members together. It may be raised, to go on.
        out: The folder of the search.
        command: What the run folders say that they were made by.
        tell: Is given a line on each member.

    Returns:
        `{"folder", "runs", "members", "gflops_images", "minutes", "best_nll"}`: each of the members is
        `{"run", "knobs", "gflops_images", "minutes", "gain"}`.

    Raises:
        RunError: If the folder belongs to another search, or is in use.
        RecipeError: If the recipe does not build with the proposed knobs.
        Interrupted: If training was asked to stop. The same search goes on from there.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with owned(out / "lock", f"search folder {out}"):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return _Search(recipe_file, knobs, tuple(ranges), budget, out, command, tell).run()


@dataclasses.dataclass
class _Search:
    recipe_file: RecipeFile
    knobs: dict[str, Any]
    ranges: tuple[Range, ...]
    budget: Budget
    out: Path
    command: str
    tell: Callable[[str], None]

    def __post_init__(self):
        storage = JournalStorage(JournalFileBackend(str(self.out / "optuna.log")))
        self.study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        self._require_same_search()
        self._votes: dict[int, np.ndarray] = {}
        self._labels = np.zeros(0, np.int32)

    def run(self) -> dict[str, Any]:
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if "gflops" not in trial.user_attrs:  # killed while it was being proposed
                self.study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._train(trial.number, self._knobs_of(trial))
        while (proposal := self._affordable_proposal()) is not None:
            self._train(proposal.number, self._knobs_of(proposal))
        return self._summary()

    def _require_same_search(self) -> None:
        """Records what is searched, or refuses a folder that was made by another search."""
        ranges = {each.knob: [each.kind, *each.values] for each in self.ranges}
        fixed = {knob: value for knob, value in self.knobs.items() if knob not in ranges}
        plan = json.loads(json.dumps({"ranges": ranges, "knobs": fixed, "source": self.recipe_file.source}))
        before = self.study.user_attrs.get("plan")
        if before is None:
            self.study.set_user_attr("plan", plan)
        elif before != plan:
            changed = [key for key in plan if plan[key] != before[key]]
            raise RunError(
                f"{self.out} belongs to another search: other {', '.join(changed)}.\n"
                "  Nothing was touched. Name another --out folder; `select` takes the members of both."
            )

    def _affordable_proposal(self) -> optuna.trial.FrozenTrial | None:
        """The next proposal that fits into what is left; None where there is none."""
        for _ in range(MOST_REFUSED):
            # A sampler of its own for each proposal: what comes next does not depend on how often it was interrupted.
            seed = self.knobs["seed"] + len(self.study.trials)
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTED_AT_RANDOM)
            spent = self._spent()
            trial = self.study.ask()
            knobs = {each.knob: each.propose(trial) for each in self.ranges}
            trial.set_user_attr("knobs", knobs)
            gflops = self._gflops(trial.number, knobs)
            trial.set_user_attr("gflops", gflops)
            if self.budget.allows(spent, gflops):
                return self.study.trials[trial.number]
            self.study.tell(trial.number, state=TrialState.PRUNED)
        return None

    def _gflops(self, number: int, knobs: dict[str, Any]) -> float:
        """Of training. A recipe that refuses its knobs ends the search, and the proposal with it."""
        try:
            recipe = self.recipe_file.build(self._all_knobs(number, knobs))
            return training_gflops(recipe, len(recipe.data.load().train))
        except BaseException:
            self.study.tell(number, state=TrialState.FAIL)
            raise

    def _all_knobs(self, number: int, knobs: dict[str, Any]) -> dict[str, Any]:
        return {**self.knobs, **knobs, "members": 1, "seed": self.knobs["seed"] + number}

    def _knobs_of(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        return self._all_knobs(trial.number, _as_values(trial, self.ranges))

    def _run_of(self, number: int) -> Run:
        return Run(self.out / f"member-{number:03d}")

    def _train(self, number: int, knobs: dict[str, Any]) -> None:
        varied = ", ".join(f"{each.knob}={knobs[each.knob]}" for each in self.ranges)
        self.tell(f"member {number}: {varied}")
        run = Run.create(self._run_of(number).path, self.recipe_file, knobs, command=self.command)
        recipe = self.recipe_file.build(knobs)
        try:
            with run.lock():
                train_committee(run, recipe)
        except (DivergedError, IncompleteError) as error:
            self.tell(f"member {number} failed: {str(error).splitlines()[0]}")
            self.study.tell(number, state=TrialState.FAIL)
            return
        before, after = self._nll(excluding=number), self._nll()
        self.study.tell(number, before - after)
        self.tell(f"member {number}: the committee's NLL on validation went from {before:.4f} to {after:.4f}")

    def _nll(self, excluding: int | None = None) -> float:
        """Of the best committee that greed finds among the members so far; of guessing where there is none."""
        self._cast()
        votes = [each for number, each in self._votes.items() if number != excluding]
        if not votes:
            return math.log(next(iter(self._votes.values())).shape[1])
        candidates = Candidates(np.stack(votes, axis=1), self._labels, [1.0] * len(votes), "geometric_mean")
        look(candidates, Goal(objective="nll"), "greedy")
        return float(candidates.table().scores["nll"].min())

    def _cast(self) -> None:
        """Fills in the votes of the members that were finished since."""
        for trial in self.study.trials:
            run = self._run_of(trial.number)
            if trial.number not in self._votes and run.member(0).finished:
                recipe = self.recipe_file.build(run.knobs())
                votes = cast_votes(run, recipe, "validation")
                self._votes[trial.number] = votes.log_probabilities[:, 0]
                self._labels = votes.labels

    def _spent(self) -> list[Spent]:
        return [Spent(each["gflops_images"], each["minutes"]) for each in self._members()]

    def _members(self) -> list[dict[str, Any]]:
        """Of every proposal whose training has begun."""
        return [
            {
                "run": str(self._run_of(trial.number).path),
                "knobs": trial.user_attrs["knobs"],
                "gflops_images": trial.user_attrs["gflops"],
                "minutes": minutes_trained(self._run_of(trial.number)),
                "gain": trial.value if trial.state == TrialState.COMPLETE else None,
            }
            for trial in self.study.trials
            if self._run_of(trial.number).path.exists()
        ]

    def _summary(self) -> dict[str, Any]:
        members = self._members()
        self._cast()
        return {
            "folder": str(self.out),
            "runs": [each["run"] for each in members if each["gain"] is not None],
            "members": members,
            "gflops_images": sum(each["gflops_images"] for each in members),
            "minutes": sum(each["minutes"] for each in members),
            "best_nll": self._nll() if self._votes else None,
        }


def _as_values(trial: optuna.trial.FrozenTrial, ranges: Sequence[Range]) -> dict[str, Any]:
    """The knobs of a proposal, as they were proposed: tuples are tuples again."""
    chosen = {each.knob: trial.params[each.knob] for each in ranges}
    return {
        each.knob: each.values[chosen[each.knob]] if each.kind == "choice" else chosen[each.knob] for each in ranges
    }
