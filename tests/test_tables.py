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
        "Of all subsets. MFLOPs: 2 x\nmultiply-adds / 1e6, for one\nimage.\n\n"
    )


@pytest.mark.parametrize("width", [50, 53, 54, 80, 200])
def test_a_table_that_fits_truncates_no_cell(printed, width):
    text = printed(width)
    assert "size 1:" not in text
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in row)
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_table_one_column_too_wide_becomes_paragraphs(printed):
    assert "┃" in printed(50)
    assert "size 1: accuracy range" in printed(49)


def test_a_row_in_a_pipe_is_one_line(printed):
    path = "/".join(["a long folder"] * 30)
    text = printed(20, io.StringIO(), [[path, "0.7139 .. 0.9194", "0.5", "1"]])
    assert [path in line and "0.7139 .. 0.9194" in line for line in text.splitlines()].count(True) == 1


def test_long_text_is_wrapped_between_words_and_a_command_with_backslashes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", Terminal())
    command = "keras-committee train recipes/tiny.py --run 'my new run' --set a=don't"
    tables.print_text(f"error: runs/a was trained with something else.\n  To go on, run: {command}", err=True)
    assert sys.stderr.getvalue() == (
        "error: runs/a was trained with something\n"
        "else.\n"
        "  To go on, run: keras-committee train \\\n"
        "    recipes/tiny.py --run 'my new run' \\\n"
        "    --set a=don't\n"
    )
    monkeypatch.setattr(sys, "stderr", Terminal())
    tables.print_text("missing  tensorflow: not installed, or not for this Python", err=True)
    assert sys.stderr.getvalue() == "missing  tensorflow: not installed, or\n         not for this Python\n"
    assert tables.wrap_text("Create a run folder first with `train RECIPE`.", 40).endswith("with\n`train RECIPE`.")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    tables.print_text(command, err=True)
    assert sys.stderr.getvalue() == f"{command}\n"


def test_wide_characters_count_twice(printed):
    assert "猫猫猫猫猫 ┃" in printed(80, rows=[["猫" * 5, *ROWS[0][1:]]]).replace("│", "┃")
    assert "size 猫猫猫猫猫: accuracy" in printed(53, rows=[["猫" * 5, *ROWS[0][1:]]])  # as ASCII they would fit


def test_markup_is_printed_literally(printed):
    assert "[bold]:x:" in printed(80, rows=[["[bold]:x:", *ROWS[0][1:]]])


def normalized_lines(capsys):
    """Return the printed lines without column lines and with single blanks."""
    return [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]


MEMBER = {"index": 1, "name": "wrn_16_1", "parameters": 171_066, "mflops": 53.304}


def test_members_have_depth_and_memory(capsys):
    memory = {"training": 2_500_000_000, "inference": 7_340_000}
    member = {**MEMBER, "batch_size": 1_024, "memory": memory, "expected_depth": None}
    skipping = {**member, "index": 2, "expected_depth": 40.5, "expected_saving": 0.251}
    tables.print_blocks(tables.member_blocks([member, skipping]))
    lines = normalized_lines(capsys)
    assert "1 wrn_16_1 171,066 53.30 - - 2.5 GB 7.3 MB" in lines
    assert "2 wrn_16_1 171,066 53.30 40.50 blocks 25.1% in training 2.5 GB 7.3 MB" in lines
    assert any("training step with batch 1,024, and inference with batch 1. MFLOPs: 2 x" in line for line in lines)


def test_members_of_constant_depth_have_no_columns_for_it(capsys):
    memory = {"training": 2_500_000_000, "inference": 7_340_000}
    tables.print_blocks(tables.member_blocks([{**MEMBER, "batch_size": 8, "memory": memory, "expected_depth": None}]))
    text = capsys.readouterr().out
    assert "1 wrn_16_1 171,066 53.30 2.5 GB 7.3 MB" in " ".join(text.replace("│", " ").split())
    assert "expected" not in text


SELECTIVE = {"aurc": 0.06789, "coverage_at_1_percent_risk": 0.125, "coverage_at_5_percent_risk": 0.875}


def test_an_evaluation_has_members_latencies_and_committees(capsys):
    scores = {"accuracy": 0.7139, "nll": 0.4629, "ece": 0.0234, "brier": 0.31, **SELECTIVE}
    interval = {"accuracy_interval": {"low": 0.5761, "high": 0.8212}}
    latency = [{"batch": 8, "lower": 1.25, "median": 1.5, "upper": 2.75}]
    spread = {name: {"mean": value, "std": 0.0099} for name, value in scores.items()}
    accuracy = {**spread["accuracy"], "subsets": 6, "min": 0.7, "max": 0.9}
    committee = {"size": 2, "mflops": 106.608, **spread, "accuracy": accuracy, **interval}
    one_subset = {**committee, "size": 4, "accuracy": {**accuracy, "subsets": 1, "std": 0.0}}
    result = {
        "members": [{**MEMBER, **scores, **interval, "latency": latency}],
        "committees": [committee, one_subset],
        "per_class": [
            {"class": "cat", "examples": 1_024, "precision": 0.75, "recall": 0.5},
            {"class": "dog", "examples": 0, "precision": 0.0, "recall": None},
        ],
        "head": "geometric_mean",
        "examples": 48,
        "split": "test",
    }
    tables.print_blocks(tables.evaluation_blocks(result))
    lines = normalized_lines(capsys)
    assert "1 wrn_16_1 53.30 0.7139 [0.576, 0.821] 0.4629 0.0234" in lines
    assert "1 wrn_16_1 8 1.25 1.50 2.75" in lines
    assert "2 6 106.61 0.7139 [0.576, 0.821] 0.0099 0.4629 0.0234" in lines
    assert "4 1 106.61 0.7139 [0.576, 0.821] - 0.4629 0.0234" in lines  # no deviation over one subset
    assert "member 1 0.06789 12.5 % 87.5 %" in lines
    assert "committee of 4 0.06789 12.5 % 87.5 %" in lines
    assert "cat 1,024 0.7500 0.5000" in lines
    assert "dog 0 0.0000 -" in lines
    assert sum("95 % interval over the 48 test images." in line for line in lines) == 2
    assert "Of the committee of all members (geometric mean)." in lines


def test_a_confusion_matrix_has_its_diagonal_in_brackets_and_fits_80_columns(capsys):
    names = ["cat", "a dog with a name that is far too long for a column of so narrow a table", "hen"]
    result = {"per_class": [{"class": name} for name in names], "confusion_matrix": [[9, 1, 0], [1, 200, 0], [0] * 3]}
    tables.print_blocks(tables._confusion_matrix(result))
    header, *lines = capsys.readouterr().out.splitlines()[1:-1]
    assert header.split() == ["0", "1", "2"]
    assert " ".join(lines[0].split()) == "0 cat [90] 10"
    assert " ".join(lines[1].split()).endswith("… 0 [100]")
    assert " ".join(lines[2].split()) == "2 hen [-]"
    assert lines[0].index("90") == header.index("0") - 1
    assert max(map(len, lines)) <= 80


def test_the_epochs_kept_are_named():
    members = [{"index": 0, "epoch": 3, "epochs": 9}, {"index": 2, "epoch": 3, "epochs": 9}]
    assert tables._epochs_note(members) == "Epoch kept: 3 of 9. "
    assert tables._epochs_note([*members, {"index": 4, "epoch": 8, "epochs": 8}]) == (
        "Epochs kept: 3 of 9 (member 0), 3 of 9 (member 2), 8 of 8 (member 4). "
    )
    assert tables._epochs_note([*members, {"index": 3}]) == ""  # imported


def test_of_many_classes_the_hardest_are_printed_and_members_have_a_top_5_accuracy(capsys):
    scores = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "accuracy_interval": {"low": 0.4, "high": 0.6}, **SELECTIVE}
    rows = [{"class": f"c{k}", "examples": 3, "precision": 0.5, "recall": (k * 7 % 30) / 30} for k in range(30)]
    result = {"members": [{**MEMBER, **scores, "top_5_accuracy": 0.875}], "committees": [], "per_class": rows}
    result |= {"head": "majority_vote", "examples": 90, "split": "test", "top_5_accuracy": 0.9375}
    tables.print_blocks(tables.evaluation_blocks(result))
    lines = normalized_lines(capsys)
    assert "1 wrn_16_1 53.30 0.5000 [0.400, 0.600] 0.8750 1.0000" in lines
    assert [line.split()[0] for line in lines if " 3 0.5000 " in line] == [f"c{13 * k % 30}" for k in range(10)]
    assert any("whose top-5 accuracy is 0.9375; the 10 of 30 classes with the lowest recall" in line for line in lines)


def selection(stages, members):
    scores = {"accuracy": 0.91, "nll": 0.3}
    intervals = {"test": {"low": 0.7955, "high": 0.968}}
    summary = {
        "members": members[:1], "mflops": 7.0, "validation": {"accuracy": 0.9, "nll": 0.4}, "test": scores,
        "accuracy_interval": intervals,
    }  # fmt: skip
    report = {
        "members": members,
        "mflops": 12.5,
        "validation": {name: {"value": value} for name, value in {"accuracy": 0.92, "nll": 0.4}.items()},
        "test": {name: {"value": value, "low": value, "high": value} for name, value in scores.items()},
        "accuracy_interval": intervals,
        "cascade": {"committee": {**summary, "mflops": 20.0}},
        "best_member": summary,
        "examples": {"validation": 19, "test": 48},
    }
    return {"kind": "cascade", "report": report, "stages": stages}


MEMBERS = [{"name": "a", "index": 0, "share": 1}, {"name": "b", "index": 3, "share": 2}]


def test_a_selected_cascade_is_compared_with_the_best_committee_and_the_best_member(capsys):
    tables.print_blocks(tables.selection_blocks(selection([{"members": 1}, {"members": 2}], MEMBERS)))
    lines = normalized_lines(capsys)
    assert "selected cascade 12.50 0.9200 0.9100 [0.795, 0.968] 0.3000" in lines
    assert "best committee 20.00 0.9000 0.9100 [0.795, 0.968] 0.3000" in lines
    assert "best member 7.00 0.9000 0.9100 [0.795, 0.968] 0.3000" in lines
    assert any("Selected on 19 validation images; [95 % interval] over the 48 test images." in line for line in lines)
    assert lines[-4:-1] == ["selected cascade: a (0), b (3 x2)", "best committee: a (0)", "best member: a (0)"]


@pytest.mark.parametrize(("members", "kind"), [(MEMBERS, "committee"), (MEMBERS[:1], "member")])
def test_a_cascade_of_one_stage_is_none(capsys, members, kind):
    tables.print_blocks(tables.selection_blocks(selection([{"members": len(members)}], members)))
    assert f"selected {kind} 12.50 0.9200" in " ".join(normalized_lines(capsys))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "evaluation_blocks",
            [
                "12 efficientnet_b0 4012.50 0.7500 [0.576, 0.821] 0.9000 0.4629",
                "12 495 4012.50 0.7500 [0.576, 0.821] 0.0100 0.4629 0.0234",
            ],
        ),
        ("selection_blocks", ["selected cascade 12.50 0.9200 0.9100 [0.795, 0.968] 0.3000"]),
    ],
)
def test_the_tables_fit_80_columns(monkeypatch, name, expected):
    member = {**MEMBER, "index": 12, "name": "efficientnet_b0", "accuracy": 0.75, "nll": 0.4629, "ece": 0.0234}
    member |= {
        "mflops": 4_012.5,
        "accuracy_interval": {"low": 0.5761, "high": 0.8212},
        "top_5_accuracy": 0.9,
        **SELECTIVE,
    }
    spread = {score: {"mean": member[score], "std": 0.01, "subsets": 495} for score in ("accuracy", "nll", "ece")}
    documents = {
        "evaluation_blocks": {
            "members": [member], "committees": [{**member, **spread, "size": 12}], "head": "geometric_mean",
            "per_class": [], "examples": 48, "split": "test", "top_5_accuracy": 0.9,
        },
        "selection_blocks": selection([{"members": 1}, {"members": 2}], MEMBERS),
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", Terminal())
    tables.print_blocks(getattr(tables, name)(documents[name]))
    text = re.sub(r"\x1b\[[\d;]*m", "", sys.stdout.getvalue())
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert set(expected) <= set(lines)  # a table cut off, or paragraphs, would have others


def test_an_unknown_cost_is_named_with_the_layers_that_cannot_be_counted(capsys):
    memory = {"training": 2_500_000_000, "inference": 7_340_000}
    described = {**MEMBER, "mflops": None, "uncounted": ["'rows' (LSTM)", "'mix' (Mix)"]}
    described |= {"batch_size": 8, "memory": memory, "expected_depth": 40.5, "expected_saving": None}
    tables.print_blocks(tables.member_blocks([{**described, "index": 0, "mflops": 2.0, "uncounted": []}, described]))
    lines = normalized_lines(capsys)
    assert "1 wrn_16_1 171,066 unknown 40.50 blocks unknown 2.5 GB 7.3 MB" in lines
    note = lines.index("note: the cost is unknown, as some layers cannot be counted:")
    assert lines[note + 1] == "member 1 (wrn_16_1): 'rows' (LSTM), 'mix' (Mix)"
    assert lines[note + 2].startswith("To count a layer, define `multiply_adds(input_shape, output_shape)` on it.")


def test_blocks_are_escaped_html_in_a_notebook_and_plain_text_in_a_representation():
    blocks = [
        tables.Table(["name", "MFLOPs"], [["<b>", "2.0"]], "Of one. "),
        "a & b\n",
        "",
        tables.Aligned("1 <\n 2"),
    ]
    assert tables.blocks_to_html(blocks) == (
        "<table>\n<thead><tr><th>name</th><th>MFLOPs</th></tr></thead>\n<tbody>\n"
        "<tr><td>&lt;b&gt;</td><td>2.0</td></tr>\n</tbody>\n</table>\n"
        "<p><small>Of one. MFLOPs: 2 x multiply-adds / 1e6, for one image.</small></p>\n"
        "<p>a &amp; b</p>\n<pre>1 &lt;\n 2</pre>"
    )
    lines = [" ".join(re.sub("[│┃]", " ", line).split()) for line in tables.format_blocks(blocks).splitlines()]
    assert lines[1] == "name MFLOPs"
    assert lines[3] == "<b> 2.0"
    assert lines[5:] == ["Of one. MFLOPs: 2 x multiply-adds / 1e6, for one image.", "", "a & b", "", "", "1 <", "2"]
