"""What the tests of the pages share: a folder with all that the shown commands name."""

import pytest
from shop import stock


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A folder with all that the commands name, and the commands that have been run so far."""
    folder = tmp_path_factory.mktemp("shop") / "stock"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, stock(folder)
