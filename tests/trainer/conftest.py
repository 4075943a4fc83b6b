import json
import logging

import pytest

from tests.trainer.pictures import fill_folder
from tests.trainer.runs import as_a_process_of_its_own, smoke


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """Begin with pytest's log alone: commands run by other tests have set up one of their own."""
    root = logging.getLogger()
    root.handlers[:] = [x for x in root.handlers if type(x).__module__.startswith("_pytest")]
    root.setLevel(logging.WARNING)


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


@pytest.fixture
def checkpoint(reference):
    """A published checkpoint, tiny."""
    return reference / "checkpoint_tiny.pth"


@pytest.fixture
def run_folder(checkpoint, tmp_path):
    """The folder of a run that has saved once, with teacher and student."""
    from esvit.weights import read_weights  # slow to import, and few tests need it
    from trainer.checkpoint import save_checkpoint
    from trainer.run_state import module_tensors

    tensors = {}
    for network in ("teacher", "student"):
        tensors |= module_tensors(network, read_weights(checkpoint, network).build_model())
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    save_checkpoint(tmp_path / "RUN" / "checkpoints", 7, tensors, {})
    config = {"crops": {"global_size": 64}, "licence": "Apache-2.0"}
    (tmp_path / "RUN" / "config.json").write_text(json.dumps(config))
    return tmp_path / "RUN"
