"""Steps are reported to the display that is in use."""

import io
import re

import pytest

from keras_committee.progress import has_display, step, track, use_display
from keras_committee.step_display import LineDisplay, displayed, make_display


class Recorder:
    """A display that keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def begin(self, text, total):
        self.calls.append((text, total))
        return text

    def update(self, key, done):
        self.calls.append((key, done))

    def end(self, key):
        self.calls.append((key, "end"))


def test_a_step_ends_with_its_block_and_an_inner_one_before():
    recorder = Recorder()
    with use_display(recorder), pytest.raises(KeyError), step("outer"), step("inner", 7):
        raise KeyError
    assert recorder.calls == [("outer", None), ("inner", 7), ("inner", "end"), ("outer", "end")]


def test_track_yields_the_items_and_counts_their_sizes():
    recorder = Recorder()
    with use_display(recorder):
        assert list(track(["ab", "c"], "reading", 3, size=len)) == ["ab", "c"]
    assert recorder.calls == [("reading", 3), ("reading", 2), ("reading", 3), ("reading", "end")]


def test_without_a_display_a_step_does_nothing():
    recorder = Recorder()
    with use_display(recorder):
        pass
    assert list(track([4, 2], "reading", 2)) == [4, 2]
    assert recorder.calls == []


def test_without_a_terminal_a_step_is_a_line_and_its_items_one_in_ten_seconds(capsys):
    clock = iter([0, *range(4, 30, 4)])
    with use_display(LineDisplay(lambda: next(clock))):
        for _ in track(range(5), "reading 1,200 images", 1_200, size=lambda _: 240):
            pass
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "reading 1,200 images\nreading 1,200 images: 720 of 1,200\n"


def test_a_step_that_goes_on_in_another_place_is_one_line(capsys):
    with use_display(LineDisplay()):
        for text in ("loading TensorFlow", "loading TensorFlow", "reading"):
            with step(text):
                pass
    assert capsys.readouterr().err == "loading TensorFlow\nreading\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("total", [None, 12_000])
def test_on_a_terminal_a_long_text_leaves_room_for_the_bar_and_the_time(monkeypatch, total):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with use_display(make_display()), step(f"loading {'folder/' * 20}", total):
        pass
    lines = [re.sub(r"\x1b\[[\d;?]*\w", "", line) for line in re.split(r"[\r\n]+", terminal.getvalue())]
    assert any(re.match(r"\S loading folder/.*\.\.\. .*0:00:00", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_function_displays_its_steps_unless_its_caller_does(capsys):
    @displayed
    def work(text):
        with step(text):
            return has_display()

    recorder = Recorder()
    with use_display(recorder):
        assert work("hidden")
    assert work("shown")
    assert not has_display()
    assert recorder.calls == [("hidden", None), ("hidden", "end")]
    assert capsys.readouterr().err == "shown\n"
