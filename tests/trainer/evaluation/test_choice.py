import pytest

from tests.trainer.pictures import fill_folder
from trainer.evaluation.choice import Labels, open_split
from trainer.evaluation.config import KnnConfig


@pytest.fixture
def data(tmp_path):
    """Four training and two test pictures, with a manifest beside their folders."""
    fill_folder(tmp_path / "train", 4)
    fill_folder(tmp_path / "val", 2)
    lines = ["path,things,size"]
    things = ["cat;dog", "", "dog", "cat", "dog;horse", "cat"]
    paths = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))
    lines += [
        f"{path},{thing},{n % 2}" for n, (path, thing) in enumerate(zip(paths, things, strict=True))
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path


def split(data, labels):
    return open_split(KnnConfig(data=str(data)), None, labels)


def test_folders_are_classes(data):
    found = split(data, Labels())
    assert found.classes == ("cat", "dog")
    assert found.train_targets.tolist() == [0, 0, 1, 1]
    assert found.test_targets.tolist() == [0, 1]


def test_column_of_the_manifest_has_classes(data):
    found = split(data, Labels("size"))
    assert found.classes == ("0", "1")
    assert found.train_targets.tolist() == [0, 1, 0, 1]


def test_images_without_class_are_left_out_and_those_of_unknown_class_counted(data):
    found = split(data, Labels("things"))
    assert found.classes == ("cat", "cat;dog", "dog")
    assert len(found.train) == 3
    assert found.test_targets.tolist() == [0]
    assert found.unknown == 1


def test_image_may_have_any_number_of_classes(data):
    found = split(data, Labels("things", are_many=True))
    assert found.classes == ("cat", "dog")
    assert found.train_targets.int().tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    assert found.test_targets.int().tolist() == [[0, 1], [1, 0]]
    assert found.unknown == 0


def test_column_that_is_not_there_is_refused(data):
    with pytest.raises(ValueError, match="no column 'colour'"):
        split(data, Labels("colour"))
