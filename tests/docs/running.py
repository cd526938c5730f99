"""How is a command that a page shows run in a test? Each kind has a line in `CORRUPTIONS`; another one is an error."""

import json
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

from shop import tool
from shown import ROOT

from keras_committee.cli import cli, main
from keras_committee.recipe_file import RecipeFile


def answered(words: list[str], folder: Path) -> None:
    """Runs it here, as it stands; members train one after another, in this process, on the data of the stand-ins."""
    words = [word.replace("/shared", str(folder / "shared")).replace("$SLURM_ARRAY_TASK_ID", "1") for word in words]
    if words[1] == "train" and "--workers" not in words:
        words += ["--workers", "1"]
    for word in words:
        if word.startswith("data_dir="):
            (folder / word.removeprefix("data_dir=")).mkdir(parents=True, exist_ok=True)
    assert main(words[1:]) == 0


def parsed(words: list[str], folder: Path) -> None:
    """Only the options and knobs are read."""
    context = cli.get_command(None, words[1]).make_context(words[1], words[2:], obj={"debug": False})
    if "recipe" in context.params:
        recipe = context.params["recipe"].removeprefix("/")
        assert RecipeFile.read(folder / recipe).resolve(list(context.params["overrides"]))


def served(words: list[str], folder: Path) -> None:
    """Starts it on free ports, asks it, and ends it."""
    ports = ["--rest-port", "0", "--grpc-port", "0", "--json"]
    with tool(*words, *ports, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            started = json.loads(process.stdout.readline())
            assert _get(f"{started['rest']}/v1/models/{started['models'][0]}")["model_version_status"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def looked_at(words: list[str], folder: Path) -> None:
    """Starts TensorBoard on a free port, asks for its runs, and ends it."""
    with tool(*words, "--port", "0", folder=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+:\d+/", line)))
            assert _get(url + "data/plugins_listing")["scalars"]["enabled"]
        finally:
            process.kill()


def planned(words: list[str], _folder: Path) -> None:
    """`make -n` says what it would do."""
    plan = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/" in plan


def made_by_make(words: list[str], _folder: Path) -> None:
    assert words == ["source", ".venv/bin/activate"]
    assert "$(PYTHON) -m venv .venv" in (ROOT / "Makefile").read_text()


def installable(words: list[str], _folder: Path) -> None:
    """The package has the extras that are asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,-]+)\]", words[2]).groups()
    assert name == project["name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def exported(words: list[str], _folder: Path) -> None:
    """The variable has a name, and JSON where it looks like it."""
    name, _, value = words[1].partition("=")
    assert re.fullmatch(r"[A-Z_]+", name)
    assert json.loads(value if value.startswith("{") else f'"{value}"')


def known_to_ray(words: list[str], _folder: Path) -> None:
    """Ray takes the words; in a process of its own, as Ray reads its mode of authentication once for all."""
    read = (
        "import sys; from ray.scripts.scripts import cli; cli.commands[sys.argv[1]].make_context('ray', sys.argv[2:])"
    )
    subprocess.run([sys.executable, "-c", read, *words[1:]], check=True)


def submitted(words: list[str], folder: Path) -> None:
    answered(words[1:], folder)


KINDS: list[tuple[str, Callable[[list[str], Path], None]]] = [
    (r"make (demo|test|docs|bench|packages)( \w+=.*)?", planned),
    (r"source .*", made_by_make),
    (r"pip install .*", installable),
    (r"export \w+=.*", exported),
    (r"ray (start|get-auth-token) .*", known_to_ray),
    (r"tensorboard --logdir .*", looked_at),
    (r"keras-committee train .*--strategy multiworker.*", parsed),  # tests/training/test_hosts.py trains so
    (r"keras-committee train .*--ray-address auto.*", parsed),  # tests/training/test_ray.py trains so
    (r"keras-committee serve .*", served),
    (r"keras-committee .*", answered),
    (r"srun keras-committee .*", submitted),
]


def kind_of(words: list[str]) -> Callable[[list[str], Path], None]:
    """Raises LookupError for a command that nobody has said how to run."""
    line = " ".join(words)
    for pattern, how in KINDS:
        if re.fullmatch(pattern, line):
            return how
    raise LookupError(f"no test runs `{line}`: give it a line in KINDS of tests/docs/running.py")


def due(block, done: list[list[str]]) -> list[list[str]]:
    """The commands of a block but those that ran before; all of them where the block makes its own runs."""
    return [words for words in block.commands() if trained_by(block) or words not in done]


def trained_by(block) -> set[str]:
    """The names of the runs that the block itself makes."""
    return {_run(words) for words in block.commands() if words[:2] == ["keras-committee", "train"]}


def _run(words: list[str]) -> str:
    folder = words[words.index("--run") + 1] if "--run" in words else words[2].removesuffix(".py")
    return Path(folder).name


def _get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)
