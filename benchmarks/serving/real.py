"""What does a cascade save on real images, and at which accuracy? Two exports, asked about the same files by turns."""

import time
from pathlib import Path

import numpy as np


def compare(folders, directory, batch, limit=None):
    """For each export: accuracy, members asked on average and images in a second.

    Args:
        folders: Name -> folder of a version.
        directory: One folder of images for each class; their sorted names are the classes.
        batch: Images of a call.
        limit: At most so many images, spread over the classes; all where None.
    """
    from keras_committee.tfserving.session import Session

    sessions = {name: Session.load(Path(folder)) for name, folder in folders.items()}
    shape = next(iter(sessions.values())).signatures["serving_default"].inputs["image"].shape[1:]
    pixels, labels = read(Path(directory), shape, limit)
    answers = {name: [] for name in folders}
    seconds = dict.fromkeys(folders, 0.0)
    for start in range(0, len(pixels), batch):
        for name, session in sessions.items():
            began = time.perf_counter()
            answers[name].append(session.run("serving_default", {"image": pixels[start : start + batch]}))
            seconds[name] += time.perf_counter() - began if start else 0.0  # the first call is a warm-up
    timed = len(pixels) - batch
    return [
        {
            "name": name,
            "accuracy": float(np.mean(np.concatenate([each["class_id"] for each in answers[name]]) == labels)),
            "members_used": float(np.mean(np.concatenate([each["members_used"] for each in answers[name]]))),
            "images_per_second": timed / seconds[name],
            "ratio": seconds[next(iter(folders))] / seconds[name],
        }
        for name in folders
    ]


def read(directory, shape, limit):
    """float32 `(images, height, width, 3)` and int `(images,)`, in a random order."""
    from PIL import Image

    classes = sorted(path.name for path in directory.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((directory / name).iterdir())]
    order = np.random.default_rng(0).permutation(len(files))[:limit]
    pixels = [np.asarray(Image.open(files[i][0]).convert("RGB").resize(shape[1::-1])) for i in order]
    return np.stack(pixels).astype(np.float32), np.array([files[i][1] for i in order])
