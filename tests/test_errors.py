"""Exit codes, suggestions and lists of problems."""

import pytest

from keras_committee import errors
from keras_committee.errors import did_you_mean

EXIT_CODES = {
    "CommitteeError": 1,
    "RecipeError": 2,
    "DataError": 3,
    "RunError": 4,
    "InUseError": 4,
    "DivergedError": 5,
    "IncompleteError": 6,
    "ResourceError": 7,
    "VerificationError": 8,
    "ExportError": 8,
}


@pytest.mark.parametrize(("name", "exit_code"), EXIT_CODES.items())
def test_each_error_has_its_exit_code(name, exit_code):
    error = getattr(errors, name)("message")
    assert isinstance(error, errors.CommitteeError)
    assert error.exit_code == exit_code


def test_an_interruption_has_the_exit_code_of_its_signal():
    assert errors.Interrupted("saved", 143).exit_code == 143


def test_the_closest_name_is_suggested():
    assert did_you_mean("member", ["seed", "members", "number"]) == " Did you mean 'members'?"
    assert did_you_mean("tinny", ["tiny"], prefix="runs/") == " Did you mean 'runs/tiny'?"
    assert did_you_mean("data_dir", ["seed", "members"]) == ""
    assert did_you_mean("member", []) == ""
