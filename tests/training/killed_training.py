"""Trains a committee in children that are killed at random moments, until one of them finishes.

Run by `test_resume.py` in a fork: `python killed_training.py RECIPE FOLDER KILLS SEED`. Each child is forked before
anything of TensorFlow runs, so that a kill costs no new start. Every second child saves after each step; every third
is requested to stop before it is killed. Prints the number of kills, and of those inside a save.
"""

import os
import pathlib
import random
import signal
import sys
import time
import traceback

from keras_committee.errors import Interrupted
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import TrainingOptions, train_committee


def main(recipe, folder, kills, seed):
    rng, done, inside = random.Random(seed), 0, 0
    while True:
        options = TrainingOptions(checkpoint_seconds=0.0 if done % 2 else 300.0, deterministic=True)
        child = os.fork()
        if not child:
            train(recipe, folder, options)
        if done < kills:
            wait_for_work(folder, child)
            time.sleep(rng.uniform(0.0, 0.7))
            if done % 3 == 2:  # as a queue does: SIGTERM first, killed within a second
                os.kill(child, signal.SIGTERM)
                time.sleep(rng.uniform(0.0, 1.0))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        inside += bool(list(pathlib.Path(folder).glob("members/*/state/.part-*")))
        # Before training handles signals, SIGTERM ends the process at once; to a shell that is 143, too.
        if code not in (-signal.SIGKILL, -signal.SIGTERM, 143):
            print(done, inside)
            return code
        done += 1


def train(recipe, folder, options):
    try:
        file = RecipeFile.read(recipe)
        parameters = file.resolve(
            ["members=2", "snapshots=2", "epochs=30", "swa_epoch_start=0.5", "precision=mixed_bfloat16"]
        )
        run = Run.create(folder, file, parameters, command="test")
        with run.lock():
            train_committee(run, file.build(parameters), options=options)
    except Interrupted as error:
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for_work(folder, child):
    """Wait until the child has added to the journal, or has ended."""
    before = newest(folder)
    while newest(folder) <= before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)


def newest(folder):
    return max((path.stat().st_mtime_ns for path in pathlib.Path(folder).glob("journal.jsonl")), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
