"""Tables in wide terminals, paragraphs in narrow ones, and lines in pipes."""

import io
import re
import sys

import pytest

from keras_committee import tables

COLUMNS = ["size", "accuracy range", "NLL", "MFLOPs"]
ROWS = [["1", "0.7139 .. 0.9194", "0.4629 ± 0.0099", "53.30"], ["2", "0.8194 .. 0.9194", "0.2574 ± 0.0012", ""]]


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """Return the text of the table on a terminal of a width, or on a stream."""

    def printed(width, stream=None, rows=ROWS):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stream or Terminal())
        tables.print_table(COLUMNS, rows, "Of all subsets. ")
        return re.sub(r"\x1b\[[\d;]*m", "", sys.stdout.getvalue())

    return printed


def test_a_narrow_terminal_gets_paragraphs_wrapped_between_cells_only(printed):
    assert printed(30) == (
        "size 1:\n"
        "  accuracy range 0.7139 .. 0.9194;\n"
        "  NLL 0.4629 ± 0.0099;\n"
        "  MFLOPs 53.30\n"
        "\n"
        "size 2:\n"
        "  accuracy range 0.8194 .. 0.9194;\n"
        "  NLL 0.2574 ± 0.0012\n"
        "\n"
        "Of all subsets. MFLOPs: 2 x multiply-adds / 1e6, for one image.\n\n"
    )


@pytest.mark.parametrize("width", [50, 53, 54, 80, 200])
def test_a_table_that_fits_truncates_no_cell(printed, width):
    text = printed(width)
    assert "size 1:" not in text
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in row)
    assert max(len(line) for line in text.splitlines()[:-2]) <= width


def test_a_table_one_column_too_wide_becomes_paragraphs(printed):
    assert "┃" in printed(50)
    assert "size 1: accuracy range" in printed(49)


def test_a_row_in_a_pipe_is_one_line(printed):
    path = "/".join(["a long folder"] * 30)
    text = printed(20, io.StringIO(), [[path, "0.7139 .. 0.9194", "0.5", "1"]])
    assert [path in line and "0.7139 .. 0.9194" in line for line in text.splitlines()].count(True) == 1


def test_wide_characters_count_twice(printed):
    assert "猫猫猫猫猫 ┃" in printed(80, rows=[["猫" * 5, *ROWS[0][1:]]]).replace("│", "┃")
    assert "size 猫猫猫猫猫: accuracy" in printed(53, rows=[["猫" * 5, *ROWS[0][1:]]])  # as ASCII they would fit


def test_markup_is_printed_literally(printed):
    assert "[bold]:x:" in printed(80, rows=[["[bold]:x:", *ROWS[0][1:]]])
