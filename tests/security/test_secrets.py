"""Run folders contain no secrets and are readable by their owner only."""

import stat

from keras_committee.cli import main
from keras_committee.files import read_record

SECRET = "hunter2-5f3c"
NAMES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "TF_CONFIG_TOKEN", "PASSWORD", "PYTHON_SECRET")
BROKEN = """
import keras
from keras_committee import Recipe, data

def stop(index):
    raise RuntimeError("stop here")

def recipe(data_dir=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sgd = lambda steps: keras.optimizers.SGD(0.1)
    return Recipe(data=data.digits(64), member=stop, members=1, optimizer=sgd, epochs=1, loss=loss)
"""


def test_a_run_folder_holds_no_variable_of_the_environment_and_is_its_owners_alone(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stops.py").write_text(BROKEN)
    assert main(["train", "stops.py"]) == 2  # the folder is made, then the member cannot be built
    run = tmp_path / "runs" / "stops"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    files = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    environment = read_record(run / "environment.json")
    known = {"recipe", "command", "seed", "smoke", "cpus", "versions", "commit", "platform", "files", "precision"}
    assert set(environment) <= known
