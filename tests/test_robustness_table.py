"""The table that `robustness` prints."""

import sys

from keras_committee.choices import CORRUPTIONS
from keras_committee.tables import print_blocks, robustness_blocks

FOREIGN = {
    "source": "gaussian noise",
    "examples": 1000,
    "confidence": {"auroc": 0.912, "fpr95": 0.25},
    "mutual_information": {"auroc": 0.875, "fpr95": 0.5},
}


def scores(committee, *members):
    return {"committee": {"accuracy": committee}, "members": [{"accuracy": accuracy} for accuracy in members]}


def printed_rows(capsys, rows, foreign=()):
    result = {"corruptions": rows, "clean": scores(0.9, 0.8, 0.7), "mean": scores(0.6, 0.5), "foreign": foreign}
    print_blocks(robustness_blocks(result))
    lines = capsys.readouterr().out.splitlines()
    return [line.replace("│", " ").split() for line in lines], max(map(len, lines))


def test_each_corruption_has_its_own_accuracies_by_severity(capsys):
    rows = [
        {"kind": kind, "severity": severity, **scores(accuracy, accuracy - 0.1, accuracy - 0.2)}
        for kind, severity, accuracy in (("fog", 1, 0.71), ("fog", 3, 0.62), ("snow", 1, 0.53), ("snow", 3, 0.44))
    ]
    lines, _ = printed_rows(capsys, rows, [FOREIGN])
    assert ["none", "90.0", "75.0"] in lines
    assert ["fog", "71.0", "62.0", "66.5", "51.5"] in lines
    assert ["snow", "53.0", "44.0", "48.5", "33.5"] in lines
    assert ["mean", "62.0", "53.0", "57.5", "42.5"] in lines
    assert ["gaussian", "noise", "1000", "0.912", "0.250", "0.875", "0.500"] in lines


def test_all_corruptions_fit_80_columns_of_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [{"kind": kind, "severity": n, **scores(1.0, 1.0)} for kind in CORRUPTIONS for n in range(1, 6)]
    lines, width = printed_rows(capsys, rows, [FOREIGN])
    assert width <= 80
    assert [CORRUPTIONS[0], *["100.0"] * 7] in lines
