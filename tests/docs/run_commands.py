"""How each kind of documented command is run in a test. A command of an unknown kind is an error."""

import json
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pages import ROOT
from workspace import start_tool

from keras_committee.cli import cli, main
from keras_committee.recipe_file import RecipeFile


def run(words: list[str], folder: Path) -> None:
    """Run the command in this process; members train one after another on the workspace's small data."""
    words = [word.replace("/shared", str(folder / "shared")).replace("$SLURM_ARRAY_TASK_ID", "1") for word in words]
    if words[1] == "train" and "--workers" not in words:
        words += ["--workers", "1"]
    for word in words:
        if word.startswith("data_dir="):
            (folder / word.removeprefix("data_dir=")).mkdir(parents=True, exist_ok=True)
    assert main(words[1:]) == 0


def parse(words: list[str], folder: Path) -> None:
    """Parse only the options and recipe parameters."""
    context = cli.get_command(None, words[1]).make_context(words[1], words[2:], obj={"debug": False})
    if "recipe" in context.params:
        recipe = context.params["recipe"].removeprefix("/")
        assert RecipeFile.read(folder / recipe).resolve(list(context.params["overrides"]))


def run_server(words: list[str], folder: Path) -> None:
    """Start the server on free ports, request a model's status, and stop it."""
    ports = ["--rest-port", "0", "--grpc-port", "0", "--json"]
    with start_tool(*words, *ports, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            started = json.loads(process.stdout.readline())
            assert _get(f"{started['rest']}/v1/models/{started['models'][0]}")["model_version_status"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def run_tensorboard(words: list[str], folder: Path) -> None:
    """Start TensorBoard on a free port, request its plugins, and stop it."""
    with start_tool(*words, "--port", "0", folder=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+:\d+/", line)))
            assert _get(url + "data/plugins_listing")["scalars"]["enabled"]
        finally:
            process.kill()


def plan_make(words: list[str], _folder: Path) -> None:
    """Print the plan with `make -n`."""
    plan = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/" in plan


def check_activation(words: list[str], _folder: Path) -> None:
    assert words == ["source", ".venv/bin/activate"]
    assert 'VENV = ROOT / ".venv"' in (ROOT / "tools" / "install_packages.py").read_text()


def check_extras(words: list[str], _folder: Path) -> None:
    """Compare the extras with those of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,-]+)\]", words[2]).groups()
    assert name == project["name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def check_export_variable(words: list[str], _folder: Path) -> None:
    name, _, value = words[1].partition("=")
    assert re.fullmatch(r"[A-Z_]+", name)
    assert json.loads(value if value.startswith("{") else f'"{value}"')


def parse_ray(words: list[str], _folder: Path) -> None:
    """Parse with Ray's own parser, in a process of its own because Ray reads its authentication mode only once."""
    read = (
        "import sys; from ray.scripts.scripts import cli; cli.commands[sys.argv[1]].make_context('ray', sys.argv[2:])"
    )
    subprocess.run([sys.executable, "-c", read, *words[1:]], check=True)


def run_srun(words: list[str], folder: Path) -> None:
    run(words[1:], folder)


def check_benchmark(words: list[str], folder: Path) -> None:
    """A benchmark takes minutes or a GPU: check that the script exists and has the options."""
    source = (ROOT / words[1]).read_text()
    for option in (word for word in words[2:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{words[1]} has no option {option}"


def check_installed(words: list[str], _folder: Path) -> None:
    """A command of another project, which needs a server or an account: check that it is installed with an extra."""
    assert Path(sys.executable).with_name(words[0]).exists()


KINDS: list[tuple[str, Callable[[list[str], Path], None]]] = [
    (r"make (demo|check|test|docs|bench|packages)( \w+=.*)?", plan_make),
    (r"source .*", check_activation),
    (r"pip install .*", check_extras),
    (r"export \w+=.*", check_export_variable),
    (r"ray (start|get-auth-token) .*", parse_ray),
    (r"tensorboard --logdir .*", run_tensorboard),
    (r"keras-committee train .*--strategy multiworker.*", parse),  # run by tests/training/test_multihost.py
    (r"keras-committee train .*--ray-address auto.*", parse),  # run by tests/training/test_ray_cluster.py
    (r"keras-committee train .*--track .*", parse),  # run by tests/tracking/test_servers.py
    (r"(mlflow (server|models serve)|wandb sync|hf upload) .*", check_installed),
    (r"python benchmarks/.*", check_benchmark),
    (r"keras-committee calibrate .*--max-risk .*", parse),  # needs more images; run by tests/evaluation/test_promise.py
    (r"keras-committee train .*--stacked.*", parse),  # run by tests/stacked/test_command.py
    # Runs of an hour, which no test has; the same commands run on others.
    (r"keras-committee (calibrate|import|select|export) .*runs/(cifar_fast|cifar_student|cifar10_small).*", parse),
    (r"keras-committee select .*--max-risk .*", parse),  # needs better members; run by tests/evaluation/test_select.py
    (r"keras-committee select .*--views .*", parse),  # run by tests/cli/test_select.py
    (r"keras-committee serve .*", run_server),
    (r"keras-committee .*", run),
    (r"srun keras-committee .*", run_srun),
]


def runner_of(words: list[str]) -> Callable[[list[str], Path], None]:
    """Raises LookupError for a command without a runner."""
    line = " ".join(words)
    for pattern, runner in KINDS:
        if re.fullmatch(pattern, line):
            return runner
    raise LookupError(f"no test runs `{line}`: add a line to KINDS in tests/docs/run_commands.py")


def remaining_commands(block, done: list[list[str]]) -> list[list[str]]:
    """The commands of a block that have not run yet; all of them if the block trains its own runs."""
    return [words for words in block.commands() if trained_runs(block) or words not in done]


def trained_runs(block) -> set[str]:
    """Names of the runs that the block itself trains."""
    return {_run_name(words) for words in block.commands() if words[:2] == ["keras-committee", "train"]}


def _run_name(words: list[str]) -> str:
    folder = words[words.index("--run") + 1] if "--run" in words else words[2].removesuffix(".py")
    return Path(folder).name


def _get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=20) as response:
        return json.load(response)
