"""What the serving tests share: a model whose answers are known by heart."""

import pytest
from half_plus_two import save_half_plus_two


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory):
    """The base path of `half_plus_two`, with version 123. Tests only read it, or copy the version."""
    base = tmp_path_factory.mktemp("models") / "half_plus_two"
    save_half_plus_two(base)
    return base
