"""Tables of image files: columns, labels, splits and problems."""

import sys

import pytest

from keras_committee.errors import DataError, RecipeError
from keras_committee.image_tables import TableColumns, list_table


@pytest.fixture
def write(tmp_path):
    """`write(*lines)`: a CSV file of these lines."""

    def write(*lines, name="table.csv"):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def listing(path, **columns):
    return list_table(path, path.parent, TableColumns(**columns))


def test_the_order_of_the_rows_has_no_effect(write):
    lines = ["b/2.png,dog", "a/1.png,cat", "b/1.png,dog", "c.png,cat"]
    one, other = (listing(write("file,label", *order)) for order in (lines, lines[::-1]))
    assert one == other
    assert one.splits == {"train": {"cat": ["a/1.png", "c.png"], "dog": ["b/1.png", "b/2.png"]}}
    assert (one.problems, one.notes) == ([], [])


def test_integers_are_ordered_by_value_and_names_as_text(write):
    assert listing(write("path,class", "a,10", "b,9", "c,2")).classes == ("2", "9", "10")
    assert listing(write("path,class", "a,10", "b,9", "c,x2")).classes == ("10", "9", "x2")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_quotes_and_a_byte_order_mark_are_read(tmp_path, separator):
    text = separator.join(["﻿Image", "Label"]) + "\r\n" + separator.join(['"a, b;|.png"', '" big ""cat"" "']) + "\r\n"
    (tmp_path / "table.tsv").write_bytes(text.encode())
    assert listing(tmp_path / "table.tsv").splits == {"train": {'big "cat"': ["a, b;|.png"]}}


def test_paths_are_relative_to_the_root_wherever_it_is(write, tmp_path):
    path = write("id,y", f"{tmp_path}/photos/1,a", "./photos//2,b", r"photos\3,b", "/elsewhere/4,b")
    found = listing(path, image="id", label="y", suffix=".jpg")
    assert found.splits["train"] == {"a": ["photos/1.jpg"], "b": ["/elsewhere/4.jpg", "photos/2.jpg", "photos/3.jpg"]}


def test_splits_are_recognized_as_those_of_folders(write):
    rows = ["1,a,Train", "2,b,training", "3,a,val", "4,b,TEST"]
    assert listing(write("image,label,split", *rows)).splits == {
        "train": {"a": ["1"], "b": ["2"]},
        "validation": {"a": ["3"], "b": []},
        "test": {"a": [], "b": ["4"]},
    }
    without_test = listing(write("image,label,split", *rows[:3]))
    assert without_test.splits["test"] == {"a": ["3"], "b": []}
    assert without_test.notes == ["'validation' is used as the test split, since there is none named test"]
    assert list(listing(write("image,label,split", *rows), split=None).splits) == ["train"]
    assert list(listing(write("image,label,part", *rows), split="part").splits) == ["train", "validation", "test"]


def test_repeated_rows_are_left_out_with_a_note_and_contradictions_are_problems(write):
    found = listing(write("image,label", "1,a", "./1,a", "2,b", "2,c"))
    assert found.splits["train"]["a"] == ["1"]
    assert found.notes == ["1 row repeats another one and is left out"]
    assert found.problems == ["2: the label is 'b' in line 4 and 'c' in line 5"]
    leak = listing(write("image,label,split", "1,a,train", "2,b,train", "2,b,test"))
    assert leak.problems == ["2: the split is 'train' in line 3 and 'test' in line 4"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["image,label", "1,a", ",b"], "line 3: there is no image"),
        (["image,label", "1, ", "2,b"], "line 2: there is no label"),
        (["image,label,split", "1,a,train", "2,b,fold3"], "line 3: the split is 'fold3', expected one of train"),
        (["image,label,split", "1,a,test", "2,b,test"], "no row is in the split train"),
        (["image,label,split", "1,a,train", "2,b,test"], "class 'b' has no row in the split train"),
        (["image,label"], "the table has no rows"),
        (
            ["image,label", "1,caf\u00e9", "2,cafe\u0301"],
            "caf\u00e9: 2 labels look like this, in different Unicode forms",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(write, lines, problem):
    assert any(found.startswith(problem) for found in listing(write(*lines)).problems)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b", "1,2"], "there is none of the columns image, path, .* for the image; the columns are a, b"),
        (["path,file,label", "1,2,3"], "the columns path and file may both be the image; set image_column"),
        (["image,label", "1,2,3"], "line 2: 3 values, expected 2"),
        (["", ""], "the table is empty"),
    ],
)
def test_a_table_without_the_columns_is_an_error(write, lines, message):
    with pytest.raises(DataError, match=message):
        listing(write(*lines))


def test_a_column_that_is_named_must_exist(write):
    with pytest.raises(DataError, match="there is no column 'part' for the split; the columns are image, label"):
        listing(write("image,label", "1,a"), split="part")
    with pytest.raises(DataError, match="there is no column 'name' for the image"):
        listing(write("image,label", "1,a"), image="name")


def test_parquet_gives_what_the_same_csv_gives(tmp_path, write):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"file": ["b", "a", "c"], "label": [10, 9, 9], "split": ["train", "train", "dev"]})
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert listing(tmp_path / "table.parquet") == listing(tmp_path / "table.csv")
    frame.assign(label=[None, "9", "9"]).to_parquet(tmp_path / "table.parquet")
    assert listing(tmp_path / "table.parquet").problems == ["row 1: there is no label"]
    frame.assign(file=[b"\xff", b"a", b"c"]).to_parquet(tmp_path / "table.parquet")
    assert listing(tmp_path / "table.parquet").problems[0] == "row 1: the image is bytes, expected a path"


def test_damaged_files_and_a_missing_package_are_named(tmp_path, write, monkeypatch):
    (tmp_path / "table.csv").write_bytes(b"image,label\n\xff,1\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        listing(tmp_path / "table.csv")
    with pytest.raises(DataError, match=r"absent.csv: the table cannot be read \(No such file"):
        listing(tmp_path / "absent.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RecipeError, match=r"table.parquet requires pip install .keras-committee\[parquet\]."):
        listing(tmp_path / "table.parquet")
