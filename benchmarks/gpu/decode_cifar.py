"""Write CIFAR-10 as an .npz file from the JPEG files in an archive, without TensorFlow.

python benchmarks/gpu/decode_cifar.py cifar10-jpeg.tar.xz cifar10.npz
"""

import io
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image


def main(archive, target):
    images, labels = {}, {}
    with tarfile.open(archive) as opened:
        contents = {member.name: opened.extractfile(member).read() for member in opened if member.isfile()}
    names = sorted(name for name in contents if name.endswith(".jpg"))
    classes = sorted({name.split("/")[-2] for name in names})
    for split in ("train", "test"):
        part = [name for name in names if name.split("/")[-3] == split]
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda name: np.asarray(Image.open(io.BytesIO(contents[name])).convert("RGB")), part)
            images[f"x_{split}"] = np.stack(list(decoded))
        labels[f"y_{split}"] = np.array([classes.index(name.split("/")[-2]) for name in part], np.int64)
    np.savez(target, **images, **labels)
    print({name: array.shape for name, array in (images | labels).items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
