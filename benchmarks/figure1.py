"""Figure 1 of the ensembling paper: accuracy against multiply-adds for committees of WRN-16-1, -2, -4 and -8.

    python benchmarks/figure1.py --data cifar10.npz --out results            # a GPU; resumes where it stopped
    python benchmarks/figure1.py --data cifar10.npz --out results --budget 300
    python benchmarks/figure1.py --data cifar10.npz --out results --plan 10  # what fits into ten minutes
    python benchmarks/figure1.py --out results --table                       # the table of the results, without a GPU

Trains the members of each width in one JAX program (`keras_committee.stacked`): one learning rate cycle, bfloat16, all
widths with the same schedule. `--widths 1,2,4:4,8:2` trains four members of WRN-16-4 and two of WRN-16-8. A width is an
ordinary run folder, `results/runs/wrn_16_<width>`; training that stops at the end of the budget resumes from its last
epoch. For each finished width `results/wrn_16_<width>.npz` has the log-probabilities of all members.

Source: Kondratyuk et al. 2020, arXiv:2005.00570, figure 1.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from keras_committee.keras_config import select_backend

RECIPE = Path(__file__).with_suffix("") / "recipe.py"
PLAN_STEPS = 40
QUICK_STEPS = 2
SUBSETS = 200  # committees of each size in the table


def train_width(arguments, width, members, deadline):
    """Train one width as far as the time allows, and return whether it is finished."""
    from keras_committee.errors import Interrupted
    from keras_committee.evaluation.predictions import load_or_compute_predictions, preload
    from keras_committee.run import open_run
    from keras_committee.stacked import StackedOptions, train_stacked

    started = time.monotonic()
    options = StackedOptions(
        mode=arguments.modes.get(width, arguments.mode),
        max_seconds=max(deadline - started, 1.0),
        checkpoint_seconds=300.0,
        max_members=arguments.max_members,
    )
    with open_run(
        RECIPE,
        overrides(arguments, width, members),
        path=arguments.out / "runs" / f"wrn_16_{width}",
        command="python benchmarks/figure1.py",
        smoke=arguments.quick,
    ) as (run, recipe):
        try:
            train_stacked(run, recipe, options=options, note=lambda text: print(f"WRN-16-{width}  {text}", flush=True))
        except Interrupted as error:
            print(f"WRN-16-{width}  {error}")
            return False
        arrays, (loaded, _) = {}, preload(recipe)
        for split in ("validation", "test"):
            predictions = load_or_compute_predictions(run, loaded, split)
            arrays[split] = predictions.log_probabilities.astype(np.float16)
            arrays[f"{split}_labels"] = predictions.labels.astype(np.uint8)
        seconds = time.monotonic() - started
        arrays["description"] = json.dumps(describe(arguments, run, recipe, width, seconds))
        np.savez_compressed(arguments.out / f"wrn_16_{width}.npz", **arrays)
    print(f"WRN-16-{width}  finished after {seconds:.0f} s", flush=True)
    return True


def overrides(arguments, width, members):
    """Return the recipe parameters of one width."""
    small = ["depth=10", "batch_size=16"] if arguments.quick else []
    return [
        f"width={width}", f"members={members}", f"epochs={arguments.epochs}", f"seed={1000 * width}",
        f"learning_rate={arguments.learning_rate}", f"data_dir={arguments.data}", *small,
    ]  # fmt: skip


def describe(arguments, run, recipe, width, seconds):
    """Return what the table needs besides the predictions."""
    import jax

    from keras_committee import flops, models

    histories = [run.member(index).read_history() for index in run.finished_members()]
    rates = [sum(row["images_per_second"] for row in rows) for rows in zip(*histories, strict=True)]
    return {
        "width": width,
        "mflops": flops.mflops(models.wide_resnet(16, width, classes=10)),
        "epochs": recipe.epochs,
        "parameters": run.parameters(),
        "device": jax.devices()[0].device_kind,
        "seconds": seconds,
        "images_per_second": float(np.median(rates)),
        "mode": arguments.modes.get(width, arguments.mode),
    }


def print_plan(arguments):
    """Print the time per epoch of each width, measured, and the number of epochs that fit into the minutes."""
    import keras

    from keras_committee.recipe_file import RecipeFile
    from keras_committee.stacked.train import build_program

    total, steps = 0.0, QUICK_STEPS if arguments.quick else PLAN_STEPS
    for width, members in arguments.widths:
        recipe_file = RecipeFile.read(RECIPE)
        recipe = recipe_file.build(recipe_file.resolve(overrides(arguments, width, members)), smoke=arguments.quick)
        splits = recipe.data.load()
        mode = arguments.modes.get(width, arguments.mode)
        _, program = build_program(recipe, list(range(members)), splits, mode)
        indices, draws = (
            np.stack(arrays)
            for arrays in zip(*(splits.batch_indices(index, 0, steps) for index in range(members)), strict=True)
        )
        state, seconds = program.initial_state(), []
        images, labels = keras.ops.array(splits.train.images.numpy()), keras.ops.array(splits.train.labels)
        for _ in range(3):
            started = time.perf_counter()
            state, *_ = program.train_epoch(state, images, labels, indices, draws)
            seconds.append(time.perf_counter() - started)
        epoch = min(seconds[1:]) / steps * splits.steps_per_epoch
        total += epoch
        print(
            f"WRN-16-{width}: {members} members, {mode}: {seconds[0]:.0f} s to compile, {epoch:.1f} s per epoch, "
            f"{members * splits.steps_per_epoch * splits.batch_size / epoch:,.0f} images/s",
            flush=True,
        )
    print(
        f"All widths: {total:.1f} s per epoch; {arguments.plan * 60 / total:.0f} epochs in {arguments.plan:g} minutes."
    )


def load_results(out):
    """Return the results of the finished widths, by width."""
    results = {}
    for file in sorted(out.glob("wrn_16_*.npz")):
        with np.load(file) as arrays:
            description = json.loads(str(arrays["description"]))
            results[description["width"]] = description | {
                "log_probs": arrays["test"].astype(np.float32),
                "labels": arrays["test_labels"].astype(np.int64),
                "validation_log_probs": arrays["validation"].astype(np.float32),
                "validation_labels": arrays["validation_labels"].astype(np.int64),
            }
    return results


def subsets(members, size, rng):
    """Return all subsets of a size, or a random sample of them."""
    if math.comb(members, size) <= SUBSETS:
        return list(itertools.combinations(range(members), size))
    chosen = set()
    while len(chosen) < SUBSETS:
        chosen.add(tuple(sorted(rng.choice(members, size, replace=False))))
    return sorted(chosen)


def committee_rows(result):
    """Return for each committee size accuracy, NLL and ECE on the test images: mean and deviation over the subsets."""
    from keras_committee import aggregation, metrics

    members, rng, rows = result["log_probs"].shape[1], np.random.default_rng(0), []
    for size in range(1, members + 1):
        scores = []
        for subset in subsets(members, size, rng):
            log_probs = result["log_probs"][:, list(subset)]
            geometric = aggregation.combine("geometric_mean", log_probs)
            arithmetic = aggregation.combine("arithmetic_mean", log_probs)
            scores.append(
                {
                    **metrics.classification_metrics(geometric, result["labels"]),
                    "arithmetic_accuracy": float(np.mean(arithmetic.argmax(1) == result["labels"])),
                }
            )
        means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
        spread = float(np.std([score["accuracy"] for score in scores]))
        rows.append({"size": size, "mflops": size * result["mflops"], "subsets": len(scores), "std": spread, **means})
    return rows


def cascade_rows(result):
    """Return for cascades of 2, 4 and 8 members accuracy and mean cost on the test images, and those of the committee.

    The members run in their order, in stages of 1, 2 and all of them. The threshold of the largest probability is the
    lowest with which the cascade is as accurate as its committee on the validation images.
    """
    from keras_committee import aggregation

    def run(split, members, threshold):
        stages = sorted({1, 2, members})
        log_probs, labels = result[f"{split}log_probs"][:, :members], result[f"{split}labels"]
        outputs = aggregation.run_cascade("geometric_mean", log_probs, stages, [threshold] * (len(stages) - 1))
        committee = aggregation.combine("geometric_mean", log_probs)
        accuracies = [float(np.mean(p.argmax(1) == labels)) for p in (outputs["probabilities"], committee)]
        return accuracies, float(outputs["members_used"].mean())

    rows = []
    for members in (size for size in (2, 4, 8) if size <= result["log_probs"].shape[1]):
        threshold = next(
            t for t in np.linspace(0.3, 1.0, 71) if np.subtract(*run("validation_", members, t)[0]) >= 0 or t == 1.0
        )
        (accuracy, committee_accuracy), used = run("", members, threshold)
        rows.append(
            {
                "size": members,
                "threshold": float(threshold),
                "accuracy": accuracy,
                "committee_accuracy": committee_accuracy,
                "members_used": used,
                "mflops": used * result["mflops"],
            }
        )
    return rows


def mixed_rows(results):
    """Return for some budgets the best committee of one width and the best of mixed widths, and their difference.

    Both are chosen on the validation images among committees of the first members of each width, and compared on the
    test images by a paired bootstrap. The largest sum of log-probabilities is the class of the geometric mean.
    """
    widths = sorted(results)
    members = [range(results[width]["log_probs"].shape[1] + 1) for width in widths]

    def log_prob_sum(split, counts):
        chosen = zip(widths, counts, strict=True)
        return sum(results[width][split][:, :count].sum(axis=1) for width, count in chosen)

    def hits(split, labels, counts):
        return log_prob_sum(split, counts).argmax(axis=1) == results[widths[0]][labels]

    costs = {
        counts: sum(count * results[width]["mflops"] for width, count in zip(widths, counts, strict=True))
        for counts in itertools.product(*members)
        if any(counts)
    }
    accuracies = {counts: hits("validation_log_probs", "validation_labels", counts).mean() for counts in costs}
    rng, rows = np.random.default_rng(0), []
    for width, size in itertools.product(widths, (1, 3, 8)):
        budget = size * results[width]["mflops"]
        affordable = [counts for counts, cost in costs.items() if cost <= budget * 1.0001]  # but for rounding
        pure = [counts for counts in affordable if sum(map(bool, counts)) == 1]
        mixed = [counts for counts in affordable if sum(map(bool, counts)) > 1]
        if not mixed:
            continue
        row = {"budget": budget}
        sides = []
        for name, candidates in (("pure", pure), ("mixed", mixed)):
            best = max(candidates, key=lambda counts: (accuracies[counts], -costs[counts]))
            sides.append(hits("log_probs", "labels", best))
            members_of = dict(zip(map(str, widths), best, strict=True))
            row[name] = {"members": members_of, "mflops": costs[best], "accuracy": float(sides[-1].mean())}
        difference = sides[1].astype(float) - sides[0]
        draws = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(2_000)]
        row |= {"points": 100 * difference.mean(), "interval": (100 * np.percentile(draws, [2.5, 97.5])).tolist()}
        rows.append(row)
    return rows


def paired_difference(first, second, draws=1000):
    """Return the mean difference of accuracies in points and its 95 % interval, over subsets and images.

    Args:
        first: Result and committee size of one side.
        second: The same of the other side.
        draws: Bootstrap draws; each draws the images and, of each side, the members of one committee.
    """
    from keras_committee import aggregation

    rng, differences = np.random.default_rng(0), []
    labels = first[0]["labels"]
    pools = []
    for result, size in (first, second):
        members = result["log_probs"].shape[1]
        committees = subsets(members, size, rng)[:40]
        predictions = [aggregation.combine("geometric_mean", result["log_probs"][:, list(c)]) for c in committees]
        pools.append([probabilities.argmax(1) == labels for probabilities in predictions])
    mean = 100 * (np.mean(pools[0]) - np.mean(pools[1]))
    for _ in range(draws):
        images = rng.integers(0, len(labels), len(labels))
        sides = [pool[rng.integers(len(pool))][images].mean() for pool in pools]
        differences.append(100 * (sides[0] - sides[1]))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(mean), float(low), float(high)


def print_table(out):
    """Print accuracy against cost, cascades, and the paper's comparisons; write them to `figure1.json`."""
    results = load_results(out)
    document = {"widths": {}, "comparisons": []}
    for width, result in results.items():
        rows = committee_rows(result)
        document["widths"][width] = {
            **{key: result[key] for key in ("mflops", "epochs", "device", "seconds", "images_per_second", "mode")},
            "rows": rows,
            "cascades": cascade_rows(result),
        }
        for row in rows:
            print(
                f"{row['size']} x WRN-16-{width:<3}{row['mflops']:>9.0f} MFLOPs {row['accuracy']:>8.2%} +- "
                f"{row['std']:.2%}  arithmetic {row['arithmetic_accuracy']:.2%}  "
                f"NLL {row['nll']:.3f}  ECE {row['ece']:.3f}"
            )
    for width in results:
        for row in document["widths"][width]["cascades"]:
            print(
                f"cascade of {row['size']} x WRN-16-{width:<3}{row['mflops']:>6.0f} MFLOPs {row['accuracy']:>8.2%}  "
                f"committee {row['committee_accuracy']:.2%}, {row['size'] / row['members_used']:.2f} times the cost"
            )
    members = {width: result["log_probs"].shape[1] for width, result in results.items()}
    for (width, size), (other_width, other_size) in (
        ((2, 1), (1, 3)), ((2, 3), (4, 1)), ((4, 3), (8, 1)), ((1, 3), (1, 1)), ((2, 3), (2, 1)), ((4, 3), (4, 1)),
    ):  # fmt: skip
        if members.get(width, 0) < size or members.get(other_width, 0) < other_size:
            continue
        sides = ((results[width], size), (results[other_width], other_size))
        mean, low, high = paired_difference(*sides)
        cost = size * results[width]["mflops"] / (other_size * results[other_width]["mflops"])
        name = f"{size} x WRN-16-{width} against {other_size} x WRN-16-{other_width}"
        document["comparisons"].append({"name": name, "points": mean, "interval": [low, high], "cost_ratio": cost})
        print(f"{name}: {mean:+.2f} points [{low:+.2f}, {high:+.2f}] at {cost:.0%} of the multiply-adds")
    document["mixed"] = mixed_rows(results) if len(results) > 1 else []
    for row in document["mixed"]:
        members = {
            name: ", ".join(f"{n} x -{w}" for w, n in row[name]["members"].items() if n) for name in ("pure", "mixed")
        }
        print(
            f"within {row['budget']:.0f} MFLOPs: {members['pure']} {row['pure']['accuracy']:.2%}; {members['mixed']} "
            f"{row['mixed']['accuracy']:.2%}: {row['points']:+.2f} points [{row['interval'][0]:+.2f}, "
            f"{row['interval'][1]:+.2f}]"
        )
    (out / "figure1.json").write_text(json.dumps(document, indent=1) + "\n")


def parse_arguments():
    def widths(text):
        pairs = [part.partition(":") for part in text.split(",")]
        return [(int(width), int(members or 8)) for width, _, members in pairs]

    def modes(text):
        pairs = [part.partition(":") for part in text.split(",")]
        return {int(width): mode for width, _, mode in pairs}

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10, as in `data.cifar10(directory=...)`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=widths, default=widths("1,2,4,8"), help="WIDTH[:MEMBERS],...")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--mode", default="packed", help="mode of the stack")
    parser.add_argument("--modes", type=modes, default={}, help="WIDTH:MODE,... where it differs")
    parser.add_argument("--max-members", type=int, help="largest number of members in one program")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which training stops cleanly")
    parser.add_argument("--plan", type=float, metavar="MINUTES", help="measure a few steps and print what fits")
    parser.add_argument("--quick", action="store_true", help="two small members for a few steps, to try the script")
    parser.add_argument("--table", action="store_true", help="print the table of the finished widths only")
    return parser.parse_args()


def main():
    started, arguments = time.monotonic(), parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        print_table(arguments.out)
        return 0
    select_backend("jax")
    if arguments.plan:
        print_plan(arguments)
        return 0
    for width, members in arguments.widths:
        if (arguments.out / f"wrn_16_{width}.npz").exists():
            continue
        if not train_width(arguments, width, members, started + arguments.budget):
            print(f"The time is used up. To resume: the same command again, with --out {arguments.out}.")
            return 1
    print_table(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
