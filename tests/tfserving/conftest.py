"""Models with predictions computed by hand, for the tests of the client, the session and the local server."""

import pytest
from half_plus_two import save_half_plus_two
from tiny_committee import save_tiny_committee


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory):
    """The base path of `half_plus_two`, with version 123. Tests only read it, or copy the version."""
    base = tmp_path_factory.mktemp("models") / "half_plus_two"
    save_half_plus_two(base)
    return base


@pytest.fixture(scope="session")
def tiny_committee(tmp_path_factory):
    """The base path of `tiny_committee`, with version 4. Tests only read it."""
    base = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_committee(base, 4)
    return base
