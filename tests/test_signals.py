"""Training stops at a safe place upon a signal, and at once upon a second Ctrl-C."""

import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from keras_committee.errors import ResourceError
from keras_committee.recipe_file import RecipeFile
from keras_committee.signals import GracefulShutdown, TrainingStopped, preserve_stop

MODULE = pathlib.Path(__file__).parents[1] / "keras_committee" / "signals.py"

# The module without the imports of its package, which take seconds.
LOADED = f"""
import hashlib, importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("signals", {str(MODULE)!r})
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
def write(word):
    os.write(1, (word + chr(10)).encode())
"""

WAITING = """
with signals.GracefulShutdown() as stop, stop.mask_signals():
    write("ready")
    for _ in range(600):
        time.sleep(0.1)
"""

# One call that runs no Python signal handler for minutes and does not hold the interpreter.
LONG_CALL = """
with signals.GracefulShutdown() as stop, stop.mask_signals():
    write("ready")
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 2_000_000_000)
"""


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture
def start():
    """Starts a process that runs a program; it has written "ready" when this returns."""
    started = []

    def start(program, **options):
        command = [sys.executable, "-c", LOADED + program]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_A04_a_signal_is_held_back_while_there_is_something_to_lose(number):
    with GracefulShutdown() as stop:
        reached = []
        with stop.mask_signals():
            send(number)
            reached.append("end")
        assert (reached, stop.requested) == (["end"], number)
        with pytest.raises(TrainingStopped):
            stop.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_A04_a_signal_stops_at_once_where_there_is_nothing_to_lose(number):
    with GracefulShutdown() as stop:
        with pytest.raises(TrainingStopped):
            send(number)
        assert stop.requested == number


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Ctrl-C: saving."), (signal.SIGTERM, "SIGTERM: saving.")])
def test_a_signal_is_answered_at_once_although_it_is_deferred(number, word):
    notes = queue.Queue()
    with GracefulShutdown(notes.put) as stop, stop.mask_signals():
        send(number)
        assert notes.get(timeout=5).startswith(word)


def test_a_signal_while_the_handlers_are_installed_stops_the_work_at_its_first_check(monkeypatch):
    make_thread = threading.Thread

    def send_and_make(*args, **options):
        send(signal.SIGTERM)
        return make_thread(*args, **options)

    monkeypatch.setattr(threading, "Thread", send_and_make)
    with GracefulShutdown() as stop:
        monkeypatch.undo()
        with pytest.raises(TrainingStopped):
            stop.check()


def test_a_block_that_has_nothing_to_lose_defers_nothing():
    with GracefulShutdown() as stop:
        with pytest.raises(TrainingStopped), stop.mask_signals(enabled=False):
            send()
        assert stop.requested == signal.SIGINT


def test_A04_a_signal_while_a_recipe_is_built_is_no_error_of_the_recipe(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text("import os, signal\n\ndef recipe():\n    os.kill(os.getpid(), signal.SIGTERM)\n")
    with GracefulShutdown(), pytest.raises(TrainingStopped):
        RecipeFile.read(file).build({})


class Nested:
    """A context manager of a library that checks its nesting, as TensorFlow's tracing does, and may be interrupted."""

    stack: ClassVar[list] = []

    def __init__(self, on_enter=lambda: None):
        self.on_enter = on_enter

    def __enter__(self):
        self.stack.append(self)
        self.on_enter()

    def __exit__(self, *_):
        assert self.stack.pop() is self, "nested wrongly"


def test_A04_a_stop_within_a_library_that_then_fails_remains_a_stop():
    with GracefulShutdown():
        with pytest.raises(TrainingStopped) as caught, preserve_stop(), Nested(), Nested(send):
            pass
        assert "nested wrongly" in str(caught.value.__cause__)


def save_on_a_full_disk(stop):
    try:
        stop.check()
    except TrainingStopped as stopped:
        raise ResourceError("no space left to save in") from stopped


def test_an_error_of_the_save_after_a_stop_remains_an_error():
    with GracefulShutdown() as stop:
        with stop.mask_signals():
            send()
        with pytest.raises(ResourceError, match="no space left"), preserve_stop():
            save_on_a_full_disk(stop)


def test_an_error_without_a_stop_remains_an_error():
    with GracefulShutdown(), pytest.raises(ZeroDivisionError), preserve_stop():
        1 / 0  # noqa: B018


def test_an_inner_block_does_not_end_the_outer_one():
    with GracefulShutdown() as stop, stop.mask_signals():
        with stop.mask_signals(), stop.mask_signals(enabled=False):
            pass
        send()
        assert stop.requested == signal.SIGINT


def test_a_block_that_fails_does_not_defer_for_ever():
    with GracefulShutdown() as stop:
        with pytest.raises(ZeroDivisionError, match="division"), stop.mask_signals():
            1 / 0  # noqa: B018
        with pytest.raises(TrainingStopped):
            send()


def test_A04_a_second_signal_does_not_disturb_the_saving():
    with GracefulShutdown() as stop:
        with stop.mask_signals():
            send(signal.SIGTERM)
        with pytest.raises(TrainingStopped):
            stop.check()
        send(signal.SIGTERM)  # the work would be saved here
        assert stop.requested == signal.SIGTERM
        with pytest.raises(TrainingStopped):
            stop.check()


def test_the_first_signal_gives_the_exit_code():
    with GracefulShutdown() as stop, stop.mask_signals():
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert stop.as_error("saved", "Again.").exit_code == 143


def test_without_a_signal_nothing_stops():
    with GracefulShutdown() as stop:
        stop.check()
        assert list(stop.check_each([2, 7])) == [2, 7]
    assert stop.requested is None


def test_watched_items_end_where_a_signal_comes():
    with GracefulShutdown() as stop, stop.mask_signals():
        items = stop.check_each([2, 7])
        assert next(items) == 2
        send()
        with pytest.raises(TrainingStopped):
            next(items)


@pytest.mark.parametrize(
    ("number", "text", "code"),
    [
        (signal.SIGINT, "Ctrl-C: saved member 2.\n  Run it again.", 130),
        (signal.SIGTERM, "SIGTERM: saved member 2.\n  Run it again.", 143),
    ],
)
def test_A04_E06_the_error_says_what_was_saved_and_how_to_resume(number, text, code):
    with GracefulShutdown() as stop, stop.mask_signals():
        send(number)
    error = stop.as_error("saved member 2", "Run it again.")
    assert (str(error), error.exit_code) == (text, code)


def test_handlers_and_wakeup_are_those_from_before_when_it_ends():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before, files = handlers(), len(os.listdir("/proc/self/fd"))
    outer = signal.set_wakeup_fd(writer)
    with GracefulShutdown() as stop:
        assert handlers() == [stop._handle] * 2
        with pytest.raises(TrainingStopped):
            send()
    assert handlers() == before
    assert signal.set_wakeup_fd(outer) == writer
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    os.close(reader)
    os.close(writer)


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_its_thread_ends_with_it():
    before = set(threading.enumerate())
    with GracefulShutdown():
        (thread,) = set(threading.enumerate()) - before
    thread.join(30)
    assert not thread.is_alive()


def test_outside_the_main_thread_no_handler_is_replaced():
    before, seen = handlers(), []

    def work():
        with GracefulShutdown() as stop, stop.mask_signals():
            seen.append(handlers())
            stop.check()
            seen.append(list(stop.check_each([3])))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, [3]]
    assert handlers() == before


# E07: a second Ctrl-C


def end(process, signals, between=0.3):
    """Sends the signals and gives the seconds that the end of the process took after the last one."""
    for number in signals:
        process.send_signal(number)
        time.sleep(between)
    started = time.monotonic()
    process.wait(timeout=60)
    return time.monotonic() - started


@pytest.mark.parametrize("program", [WAITING, LONG_CALL], ids=["sleep", "long call"])
def test_E07_the_second_ctrl_c_ends_the_process_at_once_even_in_a_long_call(start, program):
    process = start(program)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    assert end(process, [signal.SIGINT], between=0) < 10
    assert process.returncode == 130
    assert process.stderr.read() == "\nstopped at once; the last checkpoint is safe\n"


# One call that holds the interpreter for some seconds, so that three signals are handled at once.
HELD = """
with signals.GracefulShutdown() as stop, stop.mask_signals():
    write("ready")
    sum(range(60_000_000))
    time.sleep(60)
"""


def test_E07_three_signals_handled_at_once_are_more_than_two(start):
    process = start(HELD)
    end(process, [signal.SIGINT] * 3, between=0.1)
    assert process.returncode == 130


def test_E07_the_process_ends_although_stderr_is_closed(start):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(WAITING.replace("with signals", f"os.dup2({writer}, 2)\nwith signals", 1), pass_fds=(writer,))
    os.close(writer)
    assert end(process, [signal.SIGINT] * 2) < 30
    assert process.returncode == 130


def test_E07_the_process_ends_although_the_reader_of_stderr_is_suspended(start):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = start(WAITING.replace("with signals", f"os.dup2({writer}, 2)\nwith signals", 1), pass_fds=(writer,))
    assert end(process, [signal.SIGINT] * 2) < 30
    assert process.returncode == 130
    os.close(reader)
    os.close(writer)


def test_A04_terminated_twice_it_still_ends_its_work(start):
    process = start("""
with signals.GracefulShutdown() as stop, stop.mask_signals():
    write("ready")
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(1)
    write("saved")
sys.exit(signals.EXIT_CODES[stop.requested])
""")
    end(process, [signal.SIGTERM] * 2, between=0.1)
    assert (process.returncode, process.stdout.read()) == (143, "saved\n")
