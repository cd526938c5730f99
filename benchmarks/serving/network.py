"""Speed of the local server over gRPC and REST, with arrays and with PNG files."""

import concurrent.futures
import contextlib
import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
from session_process import random_images

CLIENTS = 2
PROTOCOLS = ("gRPC, float32", "gRPC, PNG", "REST, JSON numbers", "REST, PNG in base64")


@contextlib.contextmanager
def local_server(folder, base):
    """Serve a copy of the SavedModel in `folder` with the local server; yield its `{"rest": ..., "grpc": ...}`."""
    shutil.copytree(folder, base / "committee" / "1")
    command = [sys.executable, "-m", "keras_committee.cli", "serve", str(base / "committee"), "--json"]
    server = subprocess.Popen(
        [*command, "--rest-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        text = b""
        while not text.rstrip().endswith(b"}"):
            text += server.stdout.readline()
        yield json.loads(text)
    finally:
        server.terminate()
        server.wait()


def measure_requests(addresses, protocol, batch, requests, shape):
    """Return the seconds of each request of `CLIENTS` concurrent clients, and those of all requests together."""
    from keras_committee.tfserving import Client

    url = f"grpc://{addresses['grpc']}" if protocol.startswith("gRPC") else addresses["rest"]
    images = random_images(batch, shape)
    if "PNG" in protocol:
        images = [encode_png(image) for image in images]

    def send(_):
        start = time.perf_counter()
        client.predict(images, outputs=["class_id", "confidence"])
        return time.perf_counter() - start

    with Client(url, model="committee") as client, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, range(CLIENTS)))  # warm-up
        start = time.perf_counter()
        seconds = list(pool.map(send, range(requests)))
        return seconds, time.perf_counter() - start


def measure_reading(batch, rounds, shape):
    """Return the seconds to read a request of JSON numbers by the local server, and by Python's json and NumPy."""
    from keras_committee.tfserving.server.json_input import read_predict
    from keras_committee.tfserving.server.limits import Limits
    from keras_committee.tfserving.tf_protocol import TensorInfo

    infos = {"image": TensorInfo("float32", None, "image:0", 1, np.dtype(np.float32))}
    images = random_images(batch, shape)
    body = json.dumps({"instances": images.tolist()}).encode()

    def by_server():
        return read_predict(body, lambda _: infos, Limits()).inputs["image"]

    def by_json_and_numpy():
        return np.array(json.loads(body)["instances"], np.float32)

    seconds = {by_server: [], by_json_and_numpy: []}
    for _ in range(rounds):
        for read, times in seconds.items():
            start = time.perf_counter()
            assert np.array_equal(read(), images)
            times.append(time.perf_counter() - start)
    return seconds[by_server], seconds[by_json_and_numpy]


def encode_png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
