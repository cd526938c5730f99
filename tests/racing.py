"""Lets light processes race for a run folder, and tells how each one fared.

Run by `test_files.py`: `python racing.py FOLDER SCENE ROUNDS`. It loads no Keras, as it forks a process for each racer.
A line of JSON tells of each round: the word of each racer, and the events of the journal.
"""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from keras_committee.errors import InUseError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

SOURCE = '"""Tiny."""\n\n\ndef recipe(members=8, learning_rate=0.1, seed=3): ...\n'


def alone(path, file, racer, wait):
    """Begins the folder and owns it; the winner keeps it until all have spoken."""
    run = Run.create(path, file, file.resolve([]), command="train")
    with run.lock():
        run.append_event("won", racer=racer)
        wait("won")


def together(path, file, racer, wait):
    """Begins the folder, or joins those who did, and works beside them."""
    run = Run.create(path, file, file.resolve([]), command="train", shared=True)
    with run.lock(shared=True), run.member(racer).lock():
        for place in range(5):
            run.append_event("step", racer=racer, place=place, text="é" * 700)
        wait("won")


def writing(path, file, racer, wait):
    """Appends many lines to the journal of a folder that is there."""
    run = Run.open(path)
    with run.lock(shared=True):
        for place in range(50):
            run.append_event("step", racer=racer, place=place, text="x" * (racer * 900))
        wait("won")


SCENES = {"alone": (alone, 2), "together": (together, 8), "writing": (writing, 4)}


def start(act, path, file, racer, gate, told, end):
    """A child that waits at the gate, tells its word, and stays until the end."""
    child = os.fork()
    if child:
        return child

    def wait(word):
        os.write(told, f"{word}\n".encode())
        os.read(end, 1)

    try:
        os.read(gate, 1)
        act(path, file, racer, wait)
    except InUseError as error:
        os.write(told, f"{error}\n".encode())
    except BaseException:
        os.write(told, (json.dumps(traceback.format_exc()) + "\n").encode())
    os._exit(0)


def race(act, racers, path, file):
    """The words of all racers, who start at the same moment."""
    (gate, open_gate), (words, told), (end, finish) = os.pipe(), os.pipe(), os.pipe()
    children = [start(act, path, file, racer, gate, told, end) for racer in range(racers)]
    os.write(open_gate, b"x" * racers)
    said = b""
    while said.count(b"\n") < racers:
        said += os.read(words, 65536)
    os.write(finish, b"x" * racers)
    for child in children:
        os.waitpid(child, 0)
    for pipe in (gate, open_gate, words, told, end, finish):
        os.close(pipe)
    return said.decode().splitlines()


def main(scratch, scene, rounds):
    os.fsync = lambda file: None  # no power is lost here, and it takes most of the time
    act, racers = SCENES[scene]
    path = Path(scratch) / "tiny.py"
    path.write_text(SOURCE)
    file = RecipeFile.read(path)
    for number in range(int(rounds)):
        folder = Path(scratch) / f"run-{number}"
        if scene == "writing":
            Run.create(folder, file, file.resolve([]), command="train")
        words = race(act, racers, folder, file)
        run = Run.open(folder)
        left = sorted(path.name for path in folder.iterdir())
        record = [run.recipe_file().source == SOURCE, run.parameters(), run.environment()["recipe"]]
        print(json.dumps({"words": words, "events": run.events(), "left": left, "record": record}))


if __name__ == "__main__":
    main(*sys.argv[1:])
