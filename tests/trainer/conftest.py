import pytest

from tests.trainer.pictures import fill_folder
from tests.trainer.runs import as_a_process_of_its_own, smoke


@pytest.fixture
def alone():
    """The command run in this process does as it would in one of its own."""
    with as_a_process_of_its_own():
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """23 images: 5 steps of 4 an epoch, 3 images left over."""
    return fill_folder(tmp_path_factory.mktemp("images"), 23)


@pytest.fixture(scope="session")
def unbroken(images, tmp_path_factory):
    """A finished run of 10 steps in 2 epochs."""
    from trainer.pretrain import main  # slow to import, and few tests need it

    out = tmp_path_factory.mktemp("unbroken") / "run"
    with as_a_process_of_its_own():
        assert main(smoke(images, out)) == 0
    return out
