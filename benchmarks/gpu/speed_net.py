"""What each part of `models.speed_net` and of its training is worth: the accuracy without it, on JAX and a GPU.

    python benchmarks/gpu/speed_net.py --data cifar10.npz --out levers.jsonl
    python benchmarks/gpu/speed_net.py --data cifar10.npz --out levers.jsonl --variants all,relu --seeds 5
    python benchmarks/gpu/speed_net.py --out levers.jsonl --table                      # the table, without a GPU

Trains `recipes/cifar_fast.py` once for each variant, several seeds in one program (`keras_committee.stacked`), and
appends a line to the file for each. Variants in the file are not trained again, so several processes may share the work
with `--part I/N`. Accuracy is that of the last epoch.
"""

import argparse
import contextlib
import fcntl
import json
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from keras_committee.keras_config import select_backend

RECIPE = Path(__file__).parents[2] / "recipes" / "cifar_fast.py"
# "all" has every part of the paper, also those that the recipe left out because of these runs.
PAPER = {"bias_multiplier": 64.0, "flip": "alternate"}
# Recipe parameters of each variant; `without` names a part that is replaced in the network.
VARIANTS = {
    "all": {},
    "24 epochs": {"epochs": 24},
    "relu": {"activation": "relu"},
    "last group 512": {"widths": "64-256-512"},
    "without Lookahead": {"lookahead": False},
    "without whitening": {"without": "whitening"},
    "24 epochs, shifts of 4": {"epochs": 24, "pad": 4},
    "24 epochs, last group 512": {"epochs": 24, "widths": "64-256-512"},
    "flips at random": {"flip": "random"},
    "without the rate of the biases": {"bias_multiplier": 1.0},
    "survival 0.8": {"survival": 0.8},
    "survival 1": {"survival": 1.0},
    "batches of 512": {"batch_size": 512},
    "24 epochs, 96-384-384": {"epochs": 24, "widths": "96-384-384"},
    "10 epochs": {"epochs": 10},
    "without identity": {"without": "identity"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "shifts of 4 pixels": {"pad": 4},
    "32-128-256": {"widths": "32-128-256"},
    "rate 1.0": {"learning_rate": 1.0},
    "weight decay halved": {"weight_decay": 0.00067},
    "24 epochs, batches of 512": {"epochs": 24, "batch_size": 512},
    "rate 2.0": {"learning_rate": 2.0},
    "weight decay doubled": {"weight_decay": 0.00266},
    "32 epochs, last group 512": {"epochs": 32, "widths": "64-256-512"},
    "label smoothing 0": {"label_smoothing": 0.0},
    "batches of 256": {"batch_size": 256},
    "128-384-512": {"widths": "128-384-512"},
}


def main():
    arguments = parse_arguments()
    if not arguments.table:
        select_backend("jax")
        part, parts = map(int, arguments.part.split("/"))
        for name in arguments.variants[part::parts]:
            if name not in finished(arguments.out) and time.monotonic() < arguments.deadline:
                append(arguments.out, train(name, arguments))
    print_table(arguments.out)


def train(name, arguments):
    """Return the results of a variant."""
    import jax
    import jax.numpy as jnp

    from keras_committee.recipe_file import RecipeFile
    from keras_committee.stacked import train as stacked_train

    parameters = {
        **PAPER,
        **VARIANTS[name],
        "members": arguments.seeds,
        "data_dir": str(arguments.data),
        "precision": "mixed_bfloat16",
        "whitening_epochs": 0,  # a stack trains all layers throughout
    }
    without = parameters.pop("without", None)
    if arguments.quick:
        parameters |= {"widths": "4-4-4", "batch_size": 64, "epochs": 1}
    file = RecipeFile.read(RECIPE)
    recipe = file.build(file.resolve([f"{key}={value}" for key, value in parameters.items()]), smoke=arguments.quick)
    splits = recipe.data.load()
    members = list(range(recipe.members))
    with without_part(without):
        _, program = stacked_train.build_program(recipe, members, splits, "sequential")
    state, seconds = program.initial_state(), []
    images, labels = jnp.asarray(splits.train.images.numpy()), jnp.asarray(splits.train.labels)
    steps = splits.steps_per_epoch
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        batches = [splits.batch_indices(recipe.seed + index, epoch * steps, steps) for index in members]
        indices, draws = (np.stack(arrays) for arrays in zip(*batches, strict=True))
        state, losses, *_ = program.train_epoch(state, images, labels, indices, draws)
        seconds.append(time.perf_counter() - started)
    result = {"variant": name, "parameters": VARIANTS[name], "device": jax.devices()[0].device_kind}
    for split_name, split in (("validation", splits.validation), ("test", splits.test)):
        log_probs = program.log_probabilities(state, split.images.numpy())
        hits = log_probs.argmax(axis=2) == split.labels
        committee = log_probs.mean(axis=0).argmax(axis=1) == split.labels
        result |= {split_name: hits.mean(axis=1).tolist(), f"{split_name}_committee": float(committee.mean())}
    result |= {"loss": losses[:, -1].tolist(), "first_epoch_seconds": seconds[0]}
    return result | {"epoch_seconds": float(np.median(seconds[1:] or seconds)), "epochs": recipe.epochs}


def without_part(name):
    """Build networks without a part inside the block."""
    from keras_committee.layers import PartialIdentity, PatchWhitening

    if name == "whitening":
        return mock.patch.object(PatchWhitening, "adapt")
    if name == "identity":
        return mock.patch.object(
            PartialIdentity, "__call__", lambda self, shape, dtype=None: self.remainder(shape, dtype)
        )
    return contextlib.nullcontext()


def append(file, result):
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(result) + "\n")
    scores = ", ".join(f"{value:.2%}" for value in result["test"])
    print(f"{result['variant']}: {scores}, {result['epoch_seconds']:.2f} s per epoch", flush=True)


def finished(file):
    return {row["variant"] for row in read(file)}


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def print_table(file):
    rows = read(file)
    base = next((row for row in rows if row["variant"] == "all"), None)
    for row in sorted(rows, key=lambda row: list(VARIANTS).index(row["variant"])):
        test, validation = np.array(row["test"]), np.array(row["validation"])
        text = f"{row['variant']:32} test {test.mean():7.2%} +- {test.std(ddof=1) if len(test) > 1 else 0:5.2%}"
        text += f"  validation {validation.mean():7.2%}  together {row['test_committee']:7.2%}"
        if base is not None:
            pooled = np.sqrt(test.var(ddof=1) / len(test) + np.var(base["test"], ddof=1) / len(base["test"]))
            text += f"  difference {100 * (test.mean() - np.mean(base['test'])):+5.2f} +- {196 * pooled:4.2f} points"
        print(text)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar10.npz")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each variant")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1", help="I/N: every Nth variant, beginning with the Ith")
    parser.add_argument("--budget", type=float, default=3600, help="seconds after which no further variant begins")
    parser.add_argument("--quick", action="store_true", help="a toy size, to try the script on a CPU")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    arguments.deadline = time.monotonic() + arguments.budget
    return arguments


if __name__ == "__main__":
    sys.exit(main())
