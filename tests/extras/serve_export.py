"""Serve the exported committee in the folder argv[1], and check that REST and gRPC return the same labels."""

import json
import signal
import subprocess
import sys

import numpy as np

from keras_committee.tfserving import Client

command = ["keras-committee", "serve", sys.argv[1], "--rest-port", "0", "--grpc-port", "0", "--json"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        addresses = json.loads(server.stdout.readline())
        model, images = addresses["models"][0], np.full((1, 32, 32, 3), 70.0, np.float32)
        urls = (addresses["rest"], f"grpc://{addresses['grpc']}")
        labels = [Client(url, model=model).predict(images)["label"].tolist() for url in urls]
    finally:
        server.send_signal(signal.SIGINT)
if labels[0] != labels[1] or server.returncode:
    sys.exit(f"error: REST and gRPC returned {labels}; the server exited with code {server.returncode}")
