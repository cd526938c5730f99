"""Run folders contain no secrets and are readable by their owner only."""

import stat

from keras_committee.cli import main
from keras_committee.files import read_record

SECRET = "hunter2-5f3c"
NAMES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "TF_CONFIG_TOKEN", "PASSWORD", "PYTHON_SECRET")
BROKEN = "def recipe(data_dir=None):\n    raise RuntimeError('stop here')\n"


def test_a_run_folder_holds_no_variable_of_the_environment_and_is_its_owners_alone(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stops.py").write_text(BROKEN)
    assert main(["train", "stops.py"]) == 2  # the folder is made, then the recipe fails
    run = tmp_path / "runs" / "stops"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    files = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET in path.read_text()] == []
    environment = read_record(run / "environment.json")
    known = {"recipe", "command", "seed", "smoke", "cpus", "versions", "commit", "platform", "files"}
    assert set(environment) <= known
