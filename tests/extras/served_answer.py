"""Does the stand-in serve an exported committee, and do both clients get the same answer? The folder is argument 1."""

import json
import signal
import subprocess
import sys

import numpy as np

from keras_committee.tfserving import Client

command = ["keras-committee", "serve", sys.argv[1], "--rest-port", "0", "--grpc-port", "0", "--json"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        started = json.loads(server.stdout.readline())
        model, images = started["models"][0], np.full((1, 32, 32, 3), 70.0, np.float32)
        urls = (started["rest"], f"grpc://{started['grpc']}")
        labels = [Client(url, model=model).predict(images)["label"].tolist() for url in urls]
    finally:
        server.send_signal(signal.SIGINT)
if labels[0] != labels[1] or server.returncode:
    sys.exit(f"REST and gRPC answered {labels}; the server ended with {server.returncode}")
