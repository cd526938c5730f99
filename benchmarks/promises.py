"""Promised against observed: prediction sets and accepted answers of a member, a committee and cascades of a run.

    keras-committee calibrate runs/cifar_fast --coverage 0.95
    keras-committee select runs/cifar_fast --cascade --out cascade.json
    python benchmarks/promises.py runs/cifar_fast --selection cascade.json --json promises.json

The first command divides the validation split; the second chooses with one half. The rules of all promises are fitted
to the other half, and measured on the test split. The member is the best one on the half to choose with, the committee
has all members. With `--temperatures`, both have temperatures that are fitted to that half, as `calibrate` fits them.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from keras_committee import aggregation, metrics
from keras_committee.choices import SET_METHODS
from keras_committee.evaluation.pool import Pool, load_whole_pool
from keras_committee.evaluation.promise import PromiseGoal, fit_sets
from keras_committee.evaluation.select import to_selection_members
from keras_committee.metrics.selective import selective_threshold
from keras_committee.run import Run
from keras_committee.selection import Promise, Selection

COVERAGES = (0.9, 0.95, 0.99)
RISKS = (0.01, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--selection", type=Path, action="append", default=[], help="cascade chosen with one half")
    parser.add_argument("--temperatures", action="store_true", help="add member and committee with temperatures")
    parser.add_argument("--quick", action="store_true", help="one coverage")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    run = Run.open(options.run)
    cascades = {file.stem: Selection.read(file) for file in options.selection}
    views = dict.fromkeys(member.view for each in cascades.values() for member in each.members if member.view)
    whole = load_whole_pool([run], views=tuple(views))
    choose, promise = whole.divided()
    for name, cascade in cascades.items():
        if cascade.report.get("division") != choose.division:
            raise SystemExit(f"{name} was not chosen with one half of the validation images. Run `calibrate` first.")
    candidates = {**plain_committees(choose, options.temperatures), **cascades}
    coverages = COVERAGES[:1] if options.quick else COVERAGES
    rows = [measure(name, each, whole, choose, promise, coverages) for name, each in candidates.items()]
    document = {"division": choose.division, "test": len(whole.labels["test"]), "rows": rows}
    print(json.dumps(document, indent=1))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def plain_committees(choose: Pool, with_temperatures: bool) -> dict[str, Selection]:
    """Return the best member and the committee of all members on the images to choose with."""
    log_probs, labels = choose.predictions["validation"], choose.labels["validation"]
    plain = [index for index, member in enumerate(choose.members) if member.view is None]
    best = max(plain, key=lambda index: (log_probs[:, index].argmax(axis=1) == labels).mean())
    found = {}
    for name, indices in (("member", [best]), ("committee", plain)):
        members = to_selection_members(choose, indices, Path("selection.json"))
        found[name] = Selection(members=members, head="geometric_mean", classes=choose.classes)
        if with_temperatures:
            scaled = to_selection_members(choose.with_temperatures(), indices, Path("selection.json"))
            found[f"{name}, temperatures"] = dataclasses.replace(found[name], members=scaled)
    return found


def measure(name: str, selection: Selection, whole: Pool, choose: Pool, promise: Pool, coverages) -> dict:
    """Return the sets of every method and coverage, and the accepted answers, of one selection on the test split."""
    test, labels = whole.outputs(selection, "test"), whole.labels["test"]
    held_out, held_out_labels = promise.outputs(selection, "validation"), promise.labels["validation"]
    correct = test["probabilities"].argmax(axis=1) == labels
    costs = np.cumsum([member.mflops for member in selection.members])
    sets = []
    for coverage in coverages:
        for method in SET_METHODS:
            rule = fit_sets(selection, choose, promise, PromiseGoal(coverage=coverage, method=method))
            promised = Promise(split="validation", examples=1, chosen_on=1, sets=rule)
            outputs = aggregation.promised_outputs(promised, test)
            covered = float(outputs["prediction_set"][np.arange(len(labels)), labels].mean())
            sets.append(
                {
                    "promised": coverage,
                    "method": method,
                    "observed": covered,
                    "interval": metrics.accuracy_interval(covered, len(labels)),
                    "expected": metrics.coverage_interval(len(held_out_labels), coverage),
                    "mean_set_size": float(outputs["set_size"].mean()),
                    "empty": float((outputs["set_size"] == 0).mean()),
                }
            )
    accepted = []
    for risk in RISKS:
        fitted = selective_threshold(
            held_out["confidence"], held_out["probabilities"].argmax(axis=1) == held_out_labels, risk
        )
        row = {"max_risk": risk, "coverage_at_risk": metrics.coverage_at_risk(test["confidence"], correct, risk)}
        if fitted is not None:
            taken = aggregation.accepts(test["confidence"], fitted.threshold)
            observed = float((~correct[taken]).mean())
            row |= {
                "threshold": fitted.threshold,
                "accepted": float(taken.mean()),
                "risk": observed,
                "risk_interval": metrics.accuracy_interval(observed, int(taken.sum())),
            }
        accepted.append(row)
    return {
        "name": name,
        "members": len(selection.members),
        "mflops": float(costs[test["members_used"] - 1].mean()),
        "accuracy": float(correct.mean()),
        "aurc": metrics.aurc(test["confidence"], correct),
        "sets": sets,
        "accepted": accepted,
    }


if __name__ == "__main__":
    main()
