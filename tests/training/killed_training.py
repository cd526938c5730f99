"""Trains a committee in children that are killed at random moments, until one of them ends.

    python tests/training/killed_training.py RECIPE FOLDER KILLS SEED

TensorFlow is imported once; each child is forked before anything of it runs, so that a kill costs no new start. Every
second child saves after each step; every third is asked to stop before it is killed. Prints the number of kills, and
of those inside a save.
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
    chance, done, inside = random.Random(seed), 0, 0
    while True:
        settings = TrainingOptions(checkpoint_seconds=0.0 if done % 2 else 300.0, deterministic=True)
        child = os.fork()
        if not child:
            train(recipe, folder, settings)
        if done < kills:
            wait_for_work(folder, child)
            time.sleep(chance.uniform(0.0, 0.7))
            if done % 3 == 2:  # as a queue does: asked first, killed within a second
                os.kill(child, signal.SIGTERM)
                time.sleep(chance.uniform(0.0, 1.0))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        inside += bool(list(pathlib.Path(folder).glob("members/*/state/.part-*")))
        # Before training listens, SIGTERM ends the process at once; to a shell that is 143, too.
        if code not in (-signal.SIGKILL, -signal.SIGTERM, 143):
            print(done, inside)
            return code
        done += 1


def train(recipe, folder, settings):
    try:
        file = RecipeFile.read(recipe)
        knobs = file.resolve(["members=2", "epochs=30"])
        run = Run.create(folder, file, knobs, command="test")
        with run.lock():
            train_committee(run, file.build(knobs), options=settings)
    except Interrupted as error:
        os._exit(error.exit_code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for_work(folder, child):
    """Until the child has written something that was not there: a checkpoint, a line of the journal."""
    before = newest(folder)
    while newest(folder) <= before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)


def newest(folder):
    return max((path.stat().st_mtime_ns for path in pathlib.Path(folder).glob("journal.jsonl")), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
