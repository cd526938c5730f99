"""Classify an image with the exported committee in the folder argv[1], without and with the package's own command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from keras_committee.export import formats
from keras_committee.tfserving.versions import find_versions

version = max(find_versions(Path(sys.argv[1])).items())[1]
image = json.loads((version / "committee.json").read_text())["image"]
pixels = np.random.default_rng(0).integers(0, 256, (image["height"], image["width"], 3), np.uint8)
PIL.Image.fromarray(pixels).save("image.png")
outputs = formats.load(version)(pixels[None].astype(np.float32))
command = ["keras-committee", "predict", sys.argv[1], "image.png", "--json"]
document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
best = document["predictions"][0]["top"][0]
if best["class_id"] != outputs["class_id"][0] or abs(best["probability"] - outputs["probabilities"].max()) > 1e-6:
    sys.exit(f"error: predict returned {best}, the runtime {outputs}")
