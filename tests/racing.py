"""Processes that compete for a run folder.

`test_run.py` runs it as `python racing.py FOLDER SCENE ROUNDS`. It loads no Keras, because it forks. For each round it
prints one line of JSON: the result of each process, the events of the journal, the files and the recorded recipe.
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


def exclusive(path, file, process, finish):
    """Create and lock the run; the winner holds the lock until all processes have a result."""
    run = Run.create(path, file, file.resolve([]), command="train")
    with run.lock():
        run.append_event("won", process=process)
        finish("won")


def shared(path, file, process, finish):
    """Create or join a shared run, lock one member and append events."""
    run = Run.create(path, file, file.resolve([]), command="train", shared=True)
    with run.lock(shared=True), run.member(process).lock():
        for step in range(5):
            run.append_event("step", process=process, step=step, text="é" * 700)
        finish("won")


def journal(path, file, process, finish):
    """Append many events to the journal of an existing run."""
    run = Run.open(path)
    with run.lock(shared=True):
        for step in range(50):
            run.append_event("step", process=process, step=step, text="x" * (process * 900))
        finish("won")


SCENES = {"exclusive": (exclusive, 2), "shared": (shared, 8), "journal": (journal, 4)}


def start(scene, path, file, process, gate, results, end):
    """Fork a process that waits at the gate, runs the scene, writes its result and stays until the end."""
    child = os.fork()
    if child:
        return child

    def finish(result):
        os.write(results, f"{result}\n".encode())
        os.read(end, 1)

    try:
        os.read(gate, 1)
        scene(path, file, process, finish)
    except InUseError as error:
        os.write(results, f"{error}\n".encode())
    except BaseException:
        os.write(results, (json.dumps(traceback.format_exc()) + "\n").encode())
    os._exit(0)


def race(scene, num_processes, path, file):
    """Return the results of processes that start at the same moment."""
    (gate, open_gate), (read_results, results), (end, close_end) = os.pipe(), os.pipe(), os.pipe()
    children = [start(scene, path, file, process, gate, results, end) for process in range(num_processes)]
    os.write(open_gate, b"x" * num_processes)
    received = b""
    while received.count(b"\n") < num_processes:
        received += os.read(read_results, 65536)
    os.write(close_end, b"x" * num_processes)
    for child in children:
        os.waitpid(child, 0)
    for pipe in (gate, open_gate, read_results, results, end, close_end):
        os.close(pipe)
    return received.decode().splitlines()


def main(scratch, scene, rounds):
    os.fsync = lambda file: None  # takes most of the time and is not needed here
    function, num_processes = SCENES[scene]
    path = Path(scratch) / "tiny.py"
    path.write_text(SOURCE)
    file = RecipeFile.read(path)
    for number in range(int(rounds)):
        folder = Path(scratch) / f"run-{number}"
        if scene == "journal":
            Run.create(folder, file, file.resolve([]), command="train")
        results = race(function, num_processes, folder, file)
        run = Run.open(folder)
        files = sorted(path.name for path in folder.iterdir())
        record = [run.recipe_file().sources()["recipe.py"] == SOURCE, run.parameters(), run.environment()["recipe"]]
        print(json.dumps({"results": results, "events": run.events(), "files": files, "record": record}))


if __name__ == "__main__":
    main(*sys.argv[1:])
