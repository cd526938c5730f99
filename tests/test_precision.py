"""Precision "auto": what it is on each device, and that a run keeps what it began in."""

import pathlib
import signal
from functools import partial

import keras
import pytest

from keras_committee import precision
from keras_committee.cpu_info import cpu_info
from keras_committee.errors import Interrupted, RecipeError
from keras_committee.models.building import build_member
from keras_committee.precision import Device, cpu_device, gpu_device
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training import train_committee

TINY = pathlib.Path(__file__).parent / "recipes" / "tiny.py"
AMX, NO_BFLOAT16 = Device(True, True, "the CPU has AMX"), Device(True, False, "the CPU has neither AMX nor AVX512_BF16")
VOLTA = gpu_device([(7, 0)])


class StopAfterStep(GracefulShutdown):
    """Receives SIGTERM in the first training step."""

    def check(self):
        self.requested = signal.SIGTERM
        raise TrainingStopped


@pytest.fixture
def set_cpu(monkeypatch):
    """Function that gives this machine another CPU."""
    return lambda device: monkeypatch.setattr(precision, "cpu_device", lambda: device)


@pytest.fixture
def create(tmp_path):
    """Function of overrides that creates or continues a run of the tiny recipe with precision "auto"."""
    path = tmp_path / "auto.py"
    path.write_text(TINY.read_text().replace('precision="float32"', 'precision="auto"'))
    file = RecipeFile.read(path)
    return lambda **options: Run.create(tmp_path / "run", file, file.resolve([]), command="train", **options)


@pytest.mark.parametrize(
    ("content", "instructions"),
    [
        ("flags\t: fpu avx512_bf16 amx_bf16 amx_tile\n", "AMX"),
        ("flags\t: fpu avx512f avx512_bf16 avx512_vnni\n", "AVX512_BF16"),
        ("flags\t: fpu avx512f amx_tile amx_int8\n", None),
        (None, None),
    ],
)
def test_a_cpu_that_multiplies_in_bfloat16_has_a_flag_in_cpuinfo(content, instructions, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(precision, "cpu_info", partial(cpu_info, file=file))
    assert precision.cpu_bfloat16_instructions() == instructions
    device = cpu_device()
    reason = f"the CPU has {instructions or 'neither AMX nor AVX512_BF16'}"
    assert device == Device(True, instructions is not None, reason)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(8, 0)], ("mixed_bfloat16", "the compute capability of the GPU is 8.0")),
        ([(12, 0), (9, 0)], ("mixed_bfloat16", "the compute capability of the GPU is 9.0")),
        ([(8, 0), (7, 5)], ("float32", "the compute capability of the GPU is 7.5")),
        ([[9, 0], None], ("float32", "the compute capability of the GPU is unknown")),
    ],
)
def test_gpus_compute_in_bfloat16_if_all_have_compute_capability_8(capabilities, expected):
    device = gpu_device(capabilities)
    assert (device.precision, device.reason) == expected
    assert not device.is_cpu


def test_a_run_goes_on_in_the_precision_in_which_it_began(create, set_cpu):
    run, recipe = create(), create().recipe()
    assert (run.precision, recipe.precision) == (None, "auto")
    begun, line = run.begin_precision(recipe, lambda: AMX)
    assert (begun.precision, line) == ("mixed_bfloat16", "training in mixed_bfloat16: the CPU has AMX.")
    assert run.begin_precision(recipe, lambda: AMX) == (begun, "")
    set_cpu(NO_BFLOAT16)
    assert Run.open(run.path).recipe().precision == "mixed_bfloat16"  # in workers and on other hosts
    begun, line = run.begin_precision(recipe, lambda: NO_BFLOAT16)
    assert begun.precision == "mixed_bfloat16"
    assert line == (
        "warning: mixed_bfloat16 is slow on this machine: the CPU has neither AMX nor AVX512_BF16; the run continues "
        "in the precision in which it began."
    )


def test_a_run_that_began_in_float32_stays_in_it(create):
    run = create(smoke=True)
    assert run.begin_precision(run.recipe(), lambda: VOLTA)[1].startswith("training in float32: the compute capability")
    assert run.begin_precision(run.recipe(), lambda: AMX)[0].precision == "float32"
    assert run.recipe().precision == "float32"


def test_the_precision_survives_the_loss_of_the_environment(create):
    run = create()
    recipe, _ = run.begin_precision(run.recipe(), lambda: AMX)
    with run.lock():
        run.append_event("training_started", precision=recipe.precision)
    (run.path / "environment.json").unlink()
    assert create().recipe().precision == "mixed_bfloat16"


def test_members_without_a_recorded_precision_are_in_float32(create):
    run = create()
    (run.path / "members").mkdir()
    assert run.begin_precision(run.recipe(), lambda: AMX)[0].precision == "float32"


def test_a_precision_of_the_recipe_is_used_on_every_device(trained):
    run, recipe = trained
    chosen = [run.begin_precision(recipe, lambda device=device: device) for device in (AMX, NO_BFLOAT16, VOLTA)]
    assert chosen == [(recipe, "")] * 3


def test_float16_on_a_cpu_is_an_error_before_anything_is_trained(create, tmp_path):
    run = create()
    text = (tmp_path / "auto.py").read_text().replace('"auto"', '"mixed_float16"')
    (tmp_path / "half.py").write_text(text)
    recipe = RecipeFile.read(tmp_path / "half.py").build({})
    with pytest.raises(RecipeError, match=r"needs a GPU.*\n  Use precision 'auto', 'mixed_bfloat16' or 'float32'"):
        train_committee(run, recipe)
    assert not (run.path / "members").exists()
    assert run.precision is None
    assert run.begin_precision(recipe, lambda: VOLTA) == (recipe, "")


def test_a_member_stopped_on_a_cpu_with_amx_resumes_in_bfloat16_on_another(create, set_cpu, monkeypatch, capsys):
    run = create()
    recipe = run.recipe()
    set_cpu(AMX)
    assert build_member(recipe, 0).layers[1].compute_dtype == "bfloat16"
    with monkeypatch.context() as patch:
        patch.setattr("keras_committee.training.fit.GracefulShutdown", StopAfterStep)
        with pytest.raises(Interrupted):
            train_committee(run, recipe, members=[0])
    set_cpu(NO_BFLOAT16)
    train_committee(run, recipe, members=[0])
    layers = keras.saving.load_model(run.member(0).model, compile=False).layers
    assert [layer.compute_dtype for layer in layers[1:]] == ["bfloat16", "bfloat16", "bfloat16", "float32"]
    assert [event["precision"] for event in run.events() if "precision" in event] == ["mixed_bfloat16"] * 2
    output = capsys.readouterr().err
    assert "training in mixed_bfloat16: the CPU has AMX." in output
    assert "warning: mixed_bfloat16 is slow on this machine: the CPU has neither AMX nor AVX512_BF16" in output
