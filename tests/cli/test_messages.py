"""Does each failure say to the letter what, where, what was kept and what to do; and is every kind of failure there?

`tests/messages/*.txt` hold what is said. After a change that is meant so:
REWRITE_MESSAGES=1 python -m pytest tests/cli/test_messages.py
"""

import os
import pathlib
import re
import shlex
import shutil
import socket

import pytest

from keras_committee import errors, training
from keras_committee.cli import main
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

ROOT = pathlib.Path(__file__).parents[1]
SAID = ROOT / "messages"
TINY = ROOT / "recipes" / "tiny.py"

RAISES = '''"""A recipe that fails where it builds a member."""

import keras


def recipe(members=2, width=0):
    return 8 // width
'''

# What is typed, by the name of the file that holds the answer.
TYPED = {
    "2-no-such-command": "trian",
    "2-no-such-option": "train tiny.py --worker 2",
    "2-missing-argument": "evaluate",
    "2-no-such-recipe": "train tyni.py",
    "2-unknown-knob": "train tiny.py --set member=3",
    "2-knob-without-value": "train tiny.py --set members",
    "2-wrong-type": "train tiny.py --set learning_rate=fast",
    "2-out-of-range": "train tiny.py --set epochs=-1 --run runs/b",
    "2-not-python": "train broken.py",
    "2-no-function": "train empty.py",
    "2-recipe-raises": "describe raises.py",
    "2-not-a-recipe": "describe raises.py --set width=3",
    "2-profile": "train tiny.py --profile 20,10",
    "2-workers": "train tiny.py --workers many",
    "2-members": "train tiny.py --members one",
    "2-strategy": "train tiny.py --strategy mirrorred",
    "2-multiworker-without-cluster": "train tiny.py --strategy multiworker",
    "2-two-budgets": "select runs/a --max-mflops 3 --max-latency 2",
    "2-search-without-budget": "search tiny.py --search-space epochs=1:3",
    "2-search-of-no-knob": "search tiny.py --search-space epoch=1:3 --budget-minutes 1",
    "2-predict-without-image": "predict runs/a",
    "2-no-such-corruption": "robustness runs/a --corruptions fog,rain",
    "2-nothing-to-serve": "serve",
    "2-no-version-to-configure": "serving-config saved_models/a --out out",
    "2-new-over-an-old-one": "init tiny.py --from image-folder pets",
    "2-new-that-is-no-python": "init mine.txt --from image-folder pets",
    "3-no-such-images": "init mine.py --from image-folder none",
    "3-images-amiss": "init mine.py --from image-folder pets",
    "3-no-such-data": "train recipes/cifar_wrn.py --set data_dir=none",
    "4-no-such-run": "evaluate runs/none",
    "4-folder-of-others": "train tiny.py --run pets",
    "4-another-recipe": "train tiny.py --run runs/a --set learning_rate=0.1",
    "4-in-use": "train tiny.py --run runs/held",
    "4-damaged-record": "evaluate runs/damaged",
    "4-no-selection": "export runs/a --selection none.json",
    "6-nothing-trained": "evaluate runs/a",
    "4-nothing-to-export": "export runs/a",
    "7-run-in-a-file": "train tiny.py --run tiny.py/run",
    "7-no-server-installed": "serve saved_models/a --use-tf-serving",
    "2-name-that-cannot-be-served": "export runs/a --out saved_models/a%2f",
}
# These kinds need a training: their messages are tested where it takes place.
TRAINED = {"5-diverged": "DivergedError", "8-twins": "VerificationError", "130-interrupted": "Interrupted"}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """A folder with recipes, runs of all kinds, none of them trained, and a folder of pictures that are none."""
    folder = tmp_path_factory.mktemp("stocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", "")
        stock()
    return folder


@pytest.fixture
def place(stocked, tmp_path, monkeypatch):
    """A copy of that folder, which is the current one."""
    monkeypatch.chdir(shutil.copytree(stocked, tmp_path, dirs_exist_ok=True))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return tmp_path


def stock():
    """Fills the current folder."""
    shutil.copy(TINY, "tiny.py")
    shutil.copytree(ROOT.parent / "recipes", "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in {"broken.py": "def recipe(:\n", "empty.py": "x = 1\n", "raises.py": RAISES}.items():
        pathlib.Path(name).write_text(text)
    for name in ("pets/cat/a.png", "pets/dog/b.txt"):
        pathlib.Path(name).parent.mkdir(parents=True)
        pathlib.Path(name).write_bytes(b"no picture")
    file = RecipeFile.read("tiny.py")
    for name in ("a", "held", "damaged"):
        Run.create(f"runs/{name}", file, file.resolve([]), command=f"keras-committee train tiny.py --run runs/{name}")
    pathlib.Path("runs/damaged/parameters.json").write_text("{")


def answer(capsys, place, typed):
    """The command, its exit code and what it says on stderr, without what is another each time."""
    code = main(shlex.split(typed))
    out, err = capsys.readouterr()
    assert out == ""
    err = err.replace(str(place), "/FOLDER").replace(socket.gethostname(), "HOST")
    err = re.sub(r"pid \d+", "pid 123", re.sub(r"\d{4}-\d\d-\d\dT[\d:]+[\d.+:]*\d", "TIME", err))
    err = re.sub(r"sha256 \w{12}", "sha256 0123456789ab", err)
    return f"$ keras-committee {typed}\nexit code {code}\n{err}"


def compare(name, said):
    """`said` is what the file holds; or is put there, where that is asked for."""
    file = SAID / f"{name}.txt"
    file.write_text(said) if os.environ.get("REWRITE_MESSAGES") else None
    assert said == file.read_text()


@pytest.mark.parametrize("name", TYPED)
def test_a_failure_is_told_to_the_letter(place, capsys, name):
    with Run.open("runs/held").lock():
        said = answer(capsys, place, TYPED[name])
    compare(name, said)


@pytest.mark.parametrize("file", sorted(SAID.glob("*.txt")), ids=lambda file: file.stem)
def test_what_is_told_begins_with_the_error_has_its_exit_code_and_no_traceback(file):
    command, code, *lines = file.read_text().splitlines()
    assert command.startswith("$ keras-committee ")
    assert code == f"exit code {file.stem.split('-')[0]}"
    assert "\n".join(lines).lstrip().startswith("error: ")  # click ends the line of ^C first
    assert not re.search(r"Traceback|File \"|site-packages|0x[0-9a-f]{6}", "\n".join(lines))
    assert max(map(len, lines)) <= 400


def test_every_message_is_asked_for_and_every_kind_of_failure_has_one():
    assert {file.stem for file in SAID.glob("*.txt")} == {*TYPED, *TRAINED}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CommitteeError)
    ]
    codes = {kind.exit_code for kind in kinds} - {1}
    assert codes == {2, 3, 4, 5, 6, 7, 8}
    assert codes == {int(name.split("-")[0]) for name in (*TYPED, *TRAINED)} - {130}


@pytest.mark.slow
def test_a_member_that_diverges(place, capsys):
    typed = "train tiny.py --set members=1 --set learning_rate=1e38 --workers 1"
    said = answer(capsys, place, typed)
    command, code, *_ = said.splitlines(keepends=True)
    told = re.sub(r"at step \d+ \(loss=\w+\)", "at step 2 (loss=nan)", said[said.rindex("error: ") :])
    compare("5-diverged", command + code + told)


def test_members_with_equal_weights(trained, place, capsys):
    shutil.copytree(trained[0].path, "runs/twins")
    shutil.copy("runs/twins/members/00/model.keras", "runs/twins/members/02/model.keras")
    compare("8-twins", answer(capsys, place, "evaluate runs/twins"))


def test_ctrl_c(place, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_committee", interrupt)
    compare("130-interrupted", answer(capsys, place, "train tiny.py --run 'runs/my run'"))
