"""What does the way over the network cost? The stand-in, asked over gRPC and REST with arrays and with PNG files."""

import concurrent.futures
import contextlib
import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
from rows import images

CALLERS = 2
WAYS = ("gRPC, float32", "gRPC, PNG", "REST, JSON numbers", "REST, PNG in base64")


@contextlib.contextmanager
def served(folder, base):
    """The stand-in's `{"rest": ..., "grpc": ...}` for a copy of the SavedModel in `folder`."""
    shutil.copytree(folder, base / "committee" / "1")
    command = [sys.executable, "-m", "keras_committee.cli", "serve", str(base / "committee"), "--json"]
    child = subprocess.Popen(
        [*command, "--rest-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        text = b""
        while not text.rstrip().endswith(b"}"):
            text += child.stdout.readline()
        yield json.loads(text)
    finally:
        child.terminate()
        child.wait()


def ask(places, way, batch, requests, shape):
    """Seconds of each of `requests` requests by `CALLERS` callers at once, and of all together."""
    from keras_committee.tfserving import Client

    url = f"grpc://{places['grpc']}" if way.startswith("gRPC") else places["rest"]
    sent = [png(image) for image in images(batch, shape)] if "PNG" in way else images(batch, shape)

    def one(_):
        started = time.perf_counter()
        client.predict(sent, outputs=["class_id", "confidence"])
        return time.perf_counter() - started

    with Client(url, model="committee") as client, concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(one, range(CALLERS)))
        started = time.perf_counter()
        seconds = list(callers.map(one, range(requests)))
        return seconds, time.perf_counter() - started


def png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
