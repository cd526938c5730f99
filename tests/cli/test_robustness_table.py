"""The table that `robustness` prints."""

from keras_committee.cli.robustness import _print_result


def scores(committee, *members):
    return {"committee": {"accuracy": committee}, "members": [{"accuracy": accuracy} for accuracy in members]}


def test_each_corruption_has_its_own_accuracies_by_severity(capsys):
    rows = [
        {"kind": kind, "severity": severity, **scores(accuracy, accuracy - 0.1, accuracy - 0.2)}
        for kind, severity, accuracy in (("fog", 1, 0.71), ("fog", 3, 0.62), ("snow", 1, 0.53), ("snow", 3, 0.44))
    ]
    result = {"corruptions": rows, "clean": scores(0.9, 0.8, 0.7), "mean": scores(0.575, 0.4, 0.5), "foreign": []}
    _print_result(result)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["fog", "71.0%", "(56.0%)", "62.0%", "(47.0%)"] in lines
    assert ["snow", "53.0%", "(38.0%)", "44.0%", "(29.0%)"] in lines
    assert ["not", "corrupted", "90.0%", "(75.0%)"] in lines
