"""How much of their committee's accuracy selected cascades lose on other images.

    python benchmarks/cascade_choice.py runs/cifar_fast
    python benchmarks/cascade_choice.py runs/student runs/cifar_fast --images 1000 --divisions 20

The validation and test images of a pool, on none of which its members were trained, are divided at random many times.
With one part the best committee and two cascades at its accuracy are chosen: by the labels alone, and by scores that
are smoothed by the committee (`MemberPredictions.with_smoothed_accuracy`), as `select --cascade` does. Both are
compared with the committee on the other part: points of accuracy, and how many times cheaper they are.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_committee.evaluation import Objective, load_pool
from keras_committee.evaluation.cascade import MemberPredictions, simulate_cascade
from keras_committee.evaluation.cascade_search import search_cascade
from keras_committee.evaluation.committee_search import Candidates, search_committees
from keras_committee.run import Run


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=5000, help="images to choose with (default 5000)")
    parser.add_argument("--divisions", type=int, default=8, help="random divisions (default 8)")
    parser.add_argument("--json", type=Path, help="write the document to this file")
    options = parser.parse_args()
    pool = load_pool([Run.open(path) for path in options.runs])
    log_probabilities, labels = (
        np.concatenate([each[split] for split in ("validation", "test")]) for each in (pool.predictions, pool.labels)
    )
    rows = []
    for division in range(options.divisions):
        shuffled = np.random.default_rng(division).permutation(len(labels))
        parts = shuffled[: options.images], shuffled[options.images :]
        chosen_with, others = (MemberPredictions(log_probabilities[part], labels[part], pool.mflops) for part in parts)
        rows += [{"division": division, **row} for row in compare(chosen_with, others)]
    document = {
        "runs": [path.name for path in options.runs],
        "images": options.images,
        "other_images": len(labels) - options.images,
        "rows": rows,
        "means": [summary(rows, rule) for rule in ("labels", "smoothed")],
    }
    print(json.dumps(document, indent=1))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def compare(chosen_with: MemberPredictions, others: MemberPredictions) -> list[dict]:
    """Return for each rule the loss of its cascade against the best committee on both parts, and its cost."""
    committee = best_committee(chosen_with)
    accuracy, other_accuracy = (part.scores(committee, "accuracy").mean(dtype=float) for part in (chosen_with, others))
    rules = {"labels": chosen_with, "smoothed": chosen_with.with_smoothed_accuracy(committee)}
    rows = []
    for rule, predictions in rules.items():
        config = search_cascade(predictions, target=accuracy)
        if config is None:
            continue
        here, there = simulate_cascade(chosen_with, config), simulate_cascade(others, config)
        rows.append(
            {
                "rule": rule,
                "points": 100 * (here.scores["accuracy"] - accuracy),
                "points_on_others": 100 * (there.scores["accuracy"] - other_accuracy),
                "times_cheaper": others.cost(committee) / there.mflops,
                "members": list(config.order),
                "committee": committee,
            }
        )
    return rows


def best_committee(predictions: MemberPredictions) -> list[int]:
    """Return the members of the most accurate committee."""
    candidates = Candidates(
        predictions.log_probabilities, predictions.labels, np.array(predictions.mflops), "geometric_mean"
    )
    search_committees(candidates, Objective(), "auto")
    table = candidates.table()
    multiplicities = table.multiplicities[table.best(Objective())]
    return np.repeat(np.arange(len(multiplicities)), multiplicities).tolist()


def summary(rows: list[dict], rule: str) -> dict:
    """Return mean and standard deviation over the divisions."""
    rows = [row for row in rows if row["rule"] == rule]
    result = {"rule": rule, "divisions": len(rows)}
    for name in ("points", "points_on_others", "times_cheaper"):
        values = [row[name] for row in rows]
        result |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1))}
    return result


if __name__ == "__main__":
    main()
