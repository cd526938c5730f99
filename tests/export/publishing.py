"""Publish versions in processes that are killed at every single call to the file system, and print what each left.

Run by `test_publish.py`: `python publishing.py FOLDER`. It loads no Keras and no TensorFlow, as it forks a process for
each call. For each it prints a line of JSON: the call, the state of the folder that it left, and the state after a
further publication.
"""

import functools
import itertools
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from keras_committee.export.publish import publish, staging

CALLS = [(os, name) for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir", "open", "chmod")]
FILES = {"saved_model.pb": b"graph" * 50, "variables/variables.index": b"index", "committee.json": b"{}\n"}


def write_version(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def publish_one(base):
    with staging(base) as folder:
        write_version(folder / "version")
        return publish(base, folder / "version")


def die_at(number):
    """Kill the process before its file system call with this number, counted from now."""
    count = itertools.count(1)

    def counted(real, name, *arguments, **options):
        if next(count) == number:
            os.write(1, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    for module, name in CALLS:
        setattr(module, name, functools.partial(counted, getattr(module, name), name))


def state(base):
    names = sorted(path.name for path in base.iterdir())
    numeric = [name for name in names if name.isdecimal()]
    complete = all((base / n / file).read_bytes() == content for n in numeric for file, content in FILES.items())
    return {"versions": numeric, "complete": complete, "staging": len([name for name in names if "staging" in name])}


def killed_at(base, number):
    """Return the name of the call that killed the process; "" if it ended by itself."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        die_at(number)
        publish_one(base)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        name = file.read()
    os.waitpid(child, 0)
    return name


def main(folder):
    for number in itertools.count(1):
        base = folder / f"{number}"
        publish_one(base)
        call = killed_at(base, number)
        left = state(base)
        publish_one(base)
        print(json.dumps({"call": call, "left": left, "after": state(base)}))
        if not call:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
