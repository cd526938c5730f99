"""What every test may count on: two logical CPU devices, a seed, float32."""

import functools
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


def pytest_configure(config):
    """Starts Keras where tests run: in the workers of xdist, but not in the process that only deals the tests out."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        _two_devices()


def _two_devices():
    """MirroredStrategy is tested on two logical devices; they can only be made before TensorFlow starts its runtime."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Each test starts from the same seed and float32, whatever the one before it did."""
    import keras

    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(20)


TINY = pathlib.Path(__file__).parent / "recipes" / "tiny.py"


def make_run(path, overrides):
    """A new run folder of the tiny recipe, and the function that trains it."""
    from keras_committee.recipe_file import RecipeFile
    from keras_committee.run import Run
    from keras_committee.training import train_committee

    file = RecipeFile.read(TINY)
    knobs = file.resolve(overrides)
    run = Run.create(path, file, knobs, command="test")
    return run, functools.partial(train_committee, run, file.build(knobs))


@pytest.fixture(scope="session")
def run_at():
    """Makes a run of the tiny recipe at a path, with some knobs turned: `(run, train)`."""
    return make_run


@pytest.fixture
def new_run(tmp_path):
    """Makes a run of the tiny recipe with some knobs turned: `(run, train)`."""
    return lambda overrides, name="run": make_run(tmp_path / name, overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The tiny recipe's run, trained once: `(run, recipe)`. Tests only read it."""
    run, train = make_run(tmp_path_factory.mktemp("trained") / "tiny", [])
    train()
    return run, train.args[1]


@pytest.fixture(scope="session")
def mirrored():
    """The one MirroredStrategy of the process, on two logical CPU devices."""
    from keras_committee.training.devices import make_strategy

    return make_strategy("mirrored", 2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium with a fresh profile; where there is none, what needs it is skipped."""
    selenium = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no chromium")
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
    """Waits until a condition of the page holds, and returns its value."""
    from selenium.webdriver.support.ui import WebDriverWait

    return lambda condition: WebDriverWait(browser, 60).until(lambda _: condition())
