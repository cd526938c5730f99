"""Progress on terminals and in logs: what fits, what is logged and how often."""

import io
import re

import pytest
from rich.console import Console

from keras_committee.training import reporting
from keras_committee.training.reporting import ProgressBars

ROW = {"loss": 0.7, "accuracy": 0.2, "validation_accuracy": 0.8125, "images_per_second": 790.0}


def drawn_lines(width):
    """The lines of a committee of eight with two members in training, one of them in its first epoch."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    bars = ProgressBars(128, console=console, disable=False)
    bars.add_task("8 members", total=70_000)
    bars.add_task("member 11", total=7_000, epoch="starting")
    member = bars.add_task("member 3", total=7_000)
    bars.update(member, epoch="120/200", validation="93.89%")
    traced = bars.add_task("member 4", total=7_000, epoch="1/200")
    bars.update(traced, phase="validating")
    console.print(bars.get_renderable())
    return [re.sub(r"\x1b\[[\d;?]*\w", "", line).rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [30, 46, 72])
def test_no_width_cuts_the_epoch_the_accuracy_or_the_time(width):
    lines = drawn_lines(width)
    assert "…" not in "".join(lines)
    assert re.search(r"\b11\b.*starting", lines[1])
    assert re.search(r"\b3\b.*120/200.*93\.89%.*-:--", lines[2])
    assert re.search(r"\b4\b.*validating", lines[3])
    assert [line.count("0 images/s") for line in lines] == ([1, 1, 1, 0] if width == 72 else [0, 0, 0, 0])


class Shown:
    """What a monitor reads of a run, of a recipe and of the data."""

    epochs, members, head, steps_per_epoch = 200, 2, None, 10

    class data:  # noqa: N801 - an attribute of a recipe
        batch_size = 128


class NoTensorBoard:
    def __init__(self, *_):
        pass

    def on_train_begin(self):
        pass

    def on_epoch_end(self, epoch):
        pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def monitor(monkeypatch):
    """Makes a monitor that writes to `file` with some environment variables, and nothing to TensorBoard."""

    def make(file, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stderr", file)
        monkeypatch.setattr(reporting, "CommitteeTensorBoard", NoTensorBoard)
        return reporting.Monitor(Shown, Shown, Shown, [0, 1])

    return make


def train(monitor, epochs=200):
    with monitor:
        monitor.on_member_begin(0)
        for epoch in range(1, epochs + 1):
            monitor.on_steps_end(0, 10)
            monitor.on_epoch_end(0, {"epoch": epoch, **ROW})
        monitor._progress.refresh()  # as ten times a second
        monitor.note("warning: the words that matter to me")
        monitor.on_member_end(0)


@pytest.mark.parametrize("environment", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_log_has_about_fifty_lines_per_member_and_no_bars(monitor, environment):
    log = io.StringIO()
    train(monitor(log, **environment))
    lines = log.getvalue().splitlines()
    assert [line.split()[3] for line in lines[:3]] == ["1/200", "4/200", "8/200"]
    words = "member 0  epoch 200/200  loss 0.7000  accuracy 0.2000  validation 0.8125  790 images/s"
    assert lines[-2].startswith(words)
    assert lines[-1] == "warning: the words that matter to me"
    assert len(lines) == 52
    assert not set("\x1b\r━") & set(log.getvalue())


def test_a_log_has_a_line_when_a_step_is_traced_and_one_a_minute_in_a_long_epoch(monitor, monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    with monitor(log) as made:
        made.on_member_begin(0)
        made.on_phase(0, 1, "tracing")
        made.on_phase(0, 1, "training")
        for _ in range(5):
            now[0] += 25
            made.on_steps_end(0, 7)
        made.on_phase(0, 1, "validating")
    assert log.getvalue().splitlines() == [
        "member 0  epoch 1/200  tracing the training step",
        "member 0  epoch 1/200  21 of 2,000 steps",
    ]


def test_long_epochs_get_a_line_a_minute(monitor, monkeypatch):
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    made = monitor(io.StringIO())
    assert [epoch for epoch in range(1, 12) if made._is_line_due(0, epoch)] == [1, 3, 4, 6, 8, 10]


@pytest.mark.parametrize(("environment", "colors"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_bars_within_its_width_and_colors_unless_no_color(monitor, environment, colors):
    terminal = Terminal()
    train(monitor(terminal, TERM="xterm", COLUMNS="30", **environment), epochs=3)
    text = terminal.getvalue()
    lines = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in re.split(r"[\r\n]+", text)]
    assert any(re.match(r"0 +4/200 .*81\.25%", line) for line in lines)
    assert max(map(len, lines)) <= 30
    assert "warning: the words that matter" in lines  # wrapped between words
    assert ("\x1b[3" in text) == colors


class BrokenTensorBoard(NoTensorBoard):
    def on_train_begin(self):
        raise KeyError("parameters")

    def on_epoch_end(self, epoch):
        raise RuntimeError("main thread is not in main loop")


class ClosedTerminal(Terminal):
    """A terminal whose window was closed."""

    closed_by_user = False

    def write(self, text):
        if self.closed_by_user:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_tensorboard_log_that_fails_stops_no_training_and_is_reported_once(monitor, monkeypatch):
    log = io.StringIO()
    made = monitor(log)
    made._tensorboard = BrokenTensorBoard()
    train(made, epochs=3)
    text = log.getvalue()
    assert text.count("warning: the TensorBoard log of the committee failed: KeyError: 'parameters'") == 1
    assert "main thread" not in text
    assert "epoch 3/200" not in text  # one line in four epochs
    assert "warning: the words that matter to me" in text


def test_a_terminal_that_is_closed_stops_no_training(monitor):
    terminal = ClosedTerminal()
    made = monitor(terminal, TERM="xterm", COLUMNS="80")
    made._progress.live.auto_refresh = False  # no thread that draws, too
    with made:
        made.on_member_begin(0)
        terminal.closed_by_user = True
        made.on_steps_end(0, 10)
        made.on_epoch_end(0, {"epoch": 1, **ROW})
        made.note("unseen")
        made.on_member_end(0)


def test_a_member_without_a_bar_is_no_error(monitor):
    log = io.StringIO()
    with monitor(log) as made:
        made.on_resume(1, 5)
        made.on_steps_end(1, 5)
        made.on_epoch_end(1, {"epoch": 1, **ROW})
        made.on_member_end(1)
    assert log.getvalue().count("warning: the progress display failed: KeyError: 1") == 1
