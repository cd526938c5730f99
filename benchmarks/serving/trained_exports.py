"""Accuracy and speed of two exports of trained members on the same images, in alternating calls."""

import time
from pathlib import Path

import numpy as np


def compare(folders, directory, batch):
    """Return accuracy, mean number of members that ran, and images per second of each export.

    Args:
        folders: Dictionary from names to version folders; the first one is the reference of the ratios.
        directory: Folder with one folder of images per class; the sorted folder names are the classes.
        batch: Number of images per call.
    """
    from keras_committee.tfserving.session import Session

    sessions = {name: Session.load(Path(folder)) for name, folder in folders.items()}
    shape = next(iter(sessions.values())).signatures["serving_default"].inputs["image"].shape[1:]
    pixels, labels = read_images(Path(directory), shape)
    outputs = {name: [] for name in folders}
    seconds = dict.fromkeys(folders, 0.0)
    for start in range(0, len(pixels), batch):
        for name, session in sessions.items():
            call_start = time.perf_counter()
            outputs[name].append(session.run("serving_default", {"image": pixels[start : start + batch]}))
            seconds[name] += time.perf_counter() - call_start if start else 0.0  # the first call is a warm-up
    timed_images = len(pixels) - batch
    return [
        {
            "name": name,
            "accuracy": float(np.mean(np.concatenate([output["class_id"] for output in outputs[name]]) == labels)),
            "members_used": float(np.mean(np.concatenate([output["members_used"] for output in outputs[name]]))),
            "images_per_second": timed_images / seconds[name],
            "ratio": seconds[next(iter(folders))] / seconds[name],
        }
        for name in folders
    ]


def read_images(directory, shape):
    """Return float32 pixels `(images, height, width, 3)` and int labels `(images,)`, in random order."""
    from PIL import Image

    classes = sorted(path.name for path in directory.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((directory / name).iterdir())]
    order = np.random.default_rng(0).permutation(len(files))
    pixels = [np.asarray(Image.open(files[i][0]).convert("RGB").resize(shape[1::-1])) for i in order]
    return np.stack(pixels).astype(np.float32), np.array([files[i][1] for i in order])
