"""Shared fixtures: two logical CPU devices, a fixed seed, float32 and trained runs."""

import functools
import gc
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


def pytest_configure(config):
    """Configure Keras in processes that run tests, but not in the xdist controller."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        gc.set_threshold(700, 10, 50)  # a full collection of what TensorFlow and Keras hold takes a quarter second
        _two_devices()


def pytest_collection_modifyitems(config, items):
    """Deselect the full resume matrix by default; put the files with slow tests first."""
    if "full_matrix" not in config.getoption("markexpr", ""):
        matrix = [item for item in items if item.get_closest_marker("full_matrix")]
        items[:] = [item for item in items if item not in matrix]
        config.hook.pytest_deselected(items=matrix)
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)  # stable: a long file at the end would leave a worker idle


def _two_devices():
    """Create the two logical devices that MirroredStrategy is tested on, before TensorFlow starts its runtime."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Reset the seed and the dtype policy before each test."""
    import keras

    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(20)


@pytest.fixture(autouse=True, scope="session")
def no_bfloat16():
    """Make precision "auto" float32 in this process, so that the tests compute the same on every machine."""
    from keras_committee import precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            precision, "cpu_device", lambda: precision.Device(True, False, "the CPU has neither AMX nor AVX512_BF16")
        )
        yield


TINY = pathlib.Path(__file__).parent / "recipes" / "tiny.py"


def make_run(path, overrides):
    """Create a run folder of the tiny recipe: `(run, train)`."""
    from keras_committee.recipe_file import RecipeFile
    from keras_committee.run import Run
    from keras_committee.training import train_committee

    file = RecipeFile.read(TINY)
    knobs = file.resolve(overrides)
    run = Run.create(path, file, knobs, command="test")
    return run, functools.partial(train_committee, run, file.build(knobs))


@pytest.fixture(scope="session")
def run_at():
    """Function of a path and overrides that creates a run of the tiny recipe: `(run, train)`."""
    return make_run


@pytest.fixture
def new_run(tmp_path):
    """Function of overrides that creates a run of the tiny recipe in `tmp_path`: `(run, train)`."""
    return lambda overrides, name="run": make_run(tmp_path / name, overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The tiny recipe, trained once: `(run, recipe)`. Shared: commands may have added evaluations and exports."""
    run, train = make_run(tmp_path_factory.mktemp("trained") / "tiny", [])
    train()
    shutil.copytree(run.path, run.path.with_name("untouched"))
    return run, train.args[1]


@pytest.fixture(scope="session")
def copy_of_trained(trained):
    """Function that copies the trained run, as training left it, to a new folder and returns the copy."""
    from keras_committee.run import Run

    return lambda folder: Run(shutil.copytree(trained[0].path.with_name("untouched"), folder))


@pytest.fixture(scope="session")
def mirrored():
    """The single MirroredStrategy of the process, on two logical CPU devices."""
    from keras_committee.training.devices import make_strategy

    return make_strategy("mirrored", 2)


@pytest.fixture(scope="session")
def fork_server():
    """The one fork server of the session, see training/fork_server.py; it saves a program the import of TensorFlow."""
    from fork_server import ForkServer

    server = ForkServer.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a fresh profile; tests that need it are skipped where it is not installed."""
    selenium = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def until(browser):
    """Function that waits until a condition of the page is true and returns its value."""
    from selenium.webdriver.support.ui import WebDriverWait

    return lambda condition: WebDriverWait(browser, 60).until(lambda _: condition())
