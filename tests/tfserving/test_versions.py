"""Version folders and names: which folders count, and how two folders of one version are resolved."""

import time

import pytest

from keras_committee.errors import RecipeError
from keras_committee.tfserving.versions import (
    MAX_VERSION,
    find_versions,
    folder_state,
    is_valid_name,
    list_versions,
    parse_version,
)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("3", 3),
        ("0", 0),
        ("007", 7),
        ("0" * 200 + "41", 41),
        (str(2**63 - 1), MAX_VERSION),
        (str(2**63), None),
        *((name, None) for name in ("", "-1", "+1", "8x", ".9", "1_0", " 1", "1\n", "٣", ".staging-1")),
    ],
)
def test_a_version_is_a_decimal_int64_that_is_not_negative(name, version):
    assert parse_version(name) == version


def test_only_folders_are_versions_in_ascending_order(tmp_path):
    for name in ("10", "9", "012", "x4", ".staging-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert list_versions(tmp_path) == [9, 10, 12]
    assert list(find_versions(tmp_path).items()) == [(v, tmp_path / n) for v, n in ((9, "9"), (10, "10"), (12, "012"))]


def test_a_symbolic_link_counts_also_a_broken_one(tmp_path):
    (tmp_path / "3").symlink_to("nowhere")
    assert list(find_versions(tmp_path)) == [3]


def test_the_state_of_a_folder_counts_linked_files_once_and_ends_for_circles(tmp_path):
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "weights").write_bytes(b"12345")
    before = folder_state(tmp_path / "1")
    for name in ("data", "variables/data"):
        (tmp_path / "1" / name).symlink_to(tmp_path / "weights")
    (tmp_path / "1" / "circle").symlink_to(tmp_path / "1")
    (tmp_path / "1" / "broken").symlink_to("nowhere")
    after = folder_state(tmp_path / "1")
    assert (before.num_entries, after.num_entries) == (2, 3)
    folders = sum(path.stat().st_size for path in (tmp_path / "1", tmp_path / "1" / "variables"))
    assert after.num_bytes == folders + 5
    assert abs(after.changed_at - time.time()) < 60


def test_the_state_of_a_folder_that_is_missing_is_empty(tmp_path):
    assert folder_state(tmp_path / "none") == (0, 0, 0.0)


def test_of_two_folders_of_one_version_the_last_name_counts_and_a_listing_rejects_them(tmp_path):
    for name in ("007", "7"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {7: tmp_path / "7"}
    with pytest.raises(RecipeError, match="two folders of version 7, such as 7 and 007"):
        list_versions(tmp_path)


def test_a_missing_folder_is_reported_with_the_command_that_creates_one(tmp_path):
    with pytest.raises(RecipeError, match=r"is not a model folder: No such file.*`keras-committee export RUN`"):
        list_versions(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        *((name, True) for name in ("a", "wrn-16_1.b", "_", "-", "a" * 128, "A.9")),
        *((name, False) for name in ("", ".a", "a/b", "a b", "größe", "a:b", "a%", "a" * 129, "a\n")),
    ],
)
def test_a_name_is_what_a_url_can_contain(name, valid):
    assert is_valid_name(name) is valid
