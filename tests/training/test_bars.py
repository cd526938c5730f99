"""Do the bars keep their words in a narrow window, a pipe, without colour, and on a dumb terminal?"""

import concurrent.futures
import contextlib
import fcntl
import io
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from keras_committee.training import reporting
from keras_committee.training.reporting import ProgressBars

TINY = pathlib.Path(__file__).parents[1] / "recipes" / "tiny.py"
ROW = {"loss": 0.7, "accuracy": 0.2, "validation_accuracy": 0.8125, "images_per_second": 790.0}


def drawn(width):
    """The lines of a committee of eight, two of whose members are in training, one at its first epoch."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    bars = ProgressBars(128, console=console, disable=False)
    bars.add_task("8 members", total=70_000)
    bars.add_task("member 11", total=7_000, epoch="starting")
    member = bars.add_task("member 3", total=7_000)
    bars.update(member, epoch="120/200", validation="93.89%")
    console.print(bars.get_renderable())
    return [re.sub(r"\x1b\[[\d;?]*\w", "", line).rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [30, 45, 46, 60, 71, 72, 80, 120])
def test_no_window_cuts_the_epoch_the_accuracy_or_the_time(width):
    lines = drawn(width)
    assert len(lines) == 3
    assert "…" not in "".join(lines)
    assert re.search(r"\b11\b.*starting", lines[1])
    assert re.search(r"\b3\b.*120/200.*93\.89%.*-:--", lines[2])


def test_a_wide_window_has_bars_and_rates_and_whole_words():
    lines = drawn(80)
    assert lines[0].startswith("8 members ")
    assert [line.count("━") for line in lines] == [18, 18, 18]
    assert [line.count("0 images/s") for line in lines] == [1, 1, 1]
    assert "member 3  120/200" in lines[2]
    assert "validation 93.89%" in lines[2]


class Shown:
    """What a monitor reads of a run, of a recipe and of the data."""

    epochs, members, head, steps_per_epoch = 200, 2, None, 10

    class data:  # noqa: N801 - an attribute of a recipe
        batch_size = 128


class NoBoard:
    """Stands in for what TensorBoard is told."""

    def __init__(self, *_):
        pass

    def on_train_begin(self):
        pass

    def on_epoch_end(self, epoch):
        pass


@pytest.fixture
def monitor(monkeypatch):
    """Makes a monitor that writes to `file` in an environment; committees are not looked at."""

    def make(file, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stderr", file)
        monkeypatch.setattr(reporting, "CommitteeTensorBoard", NoBoard)
        return reporting.Monitor(Shown, Shown, Shown, [0, 1])

    return make


def train(monitor, epochs=200):
    with monitor:
        monitor.on_member_begin(0)
        for epoch in range(1, epochs + 1):
            monitor.on_steps_end(0, 10)
            monitor.on_epoch_end(0, {"epoch": epoch, **ROW})
        monitor._progress.refresh()  # as ten times a second
        monitor.note("warning: the word that matters")
        monitor.on_member_end(0)


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_log_has_some_fifty_lines_for_each_member_and_no_drawing(monitor, environment):
    log = io.StringIO()
    train(monitor(log, **environment))
    lines = log.getvalue().splitlines()
    assert [line.split()[3] for line in lines[:3]] == ["1/200", "4/200", "8/200"]
    assert lines[-2].startswith(
        "member 0  epoch 200/200  loss 0.7000  accuracy 0.2000  validation 0.8125  790 images/s"
    )
    assert lines[-1] == "warning: the word that matters"
    assert len(lines) == 52
    assert not set("\x1b\r━") & set(log.getvalue())


def test_long_epochs_get_a_line_a_minute(monitor, monkeypatch):
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    made = monitor(io.StringIO())
    assert [epoch for epoch in range(1, 12) if made._is_due(0, epoch)] == [1, 3, 4, 6, 8, 10]


def read_all(terminal):
    """All that is written to a pseudo-terminal, until nobody has it open any more."""
    text = b""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while part := file.read(65536):
            text += part
    return text.decode()


def through_a_terminal(monitor, width, **environment):
    """What a real pseudo-terminal of that width gets."""
    ours, its = pty.openpty()
    environment["COLUMNS"] = str(width)  # Rich asks the streams that the process began with
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        text = thread.submit(read_all, ours)
        with os.fdopen(its, "w") as file:
            train(monitor(file, **environment), epochs=3)
        return text.result()


@pytest.mark.parametrize("width", [30, 80])
def test_a_terminal_gets_bars_within_its_width(monitor, width):
    text = through_a_terminal(monitor, width, TERM="xterm")
    plain = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in re.split(r"[\r\n]+", text)]
    assert max(map(len, plain)) <= width
    assert any(re.match(r"(member )?0 +4/200 .*81\.25%", line) for line in plain)
    assert "warning: the word that matters" in plain


def test_no_color_means_no_colour(monitor):
    assert "\x1b[3" in through_a_terminal(monitor, 80, TERM="xterm")
    assert "\x1b[3" not in through_a_terminal(monitor, 80, TERM="xterm", NO_COLOR="1")


def test_a_dumb_terminal_gets_lines(monitor):
    text = through_a_terminal(monitor, 80, TERM="dumb")
    assert "\x1b" not in text
    assert "member 0  epoch 1/200  loss 0.7000" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [30, 80])
def test_train_keeps_within_a_real_terminal(tmp_path, width):
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [
        sys.executable,
        "-m",
        "keras_committee.cli",
        "train",
        str(TINY),
        "--run",
        str(tmp_path / "run"),
        "--smoke",
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": ""}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    text = read_all(ours)
    assert process.wait() == 0
    plain = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in re.split(r"[\r\n]+", text)]
    drawn = [line for line in plain if "-:--" in line or "starting" in line]
    assert any("starting" in line for line in drawn)
    assert max(map(len, drawn)) <= width
    assert f"2 members in {tmp_path}/run." in text
    assert text.rstrip().endswith(f"Next: keras-committee evaluate {tmp_path}/run")
