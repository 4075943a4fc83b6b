from dataclasses import replace

import pytest

from esvit.weights import read_weights, write_safetensors
from trainer.stored_network import image_size_of, read_network


def write(path, weights, **about):
    """Write weights of ours that say so of themselves."""
    write_safetensors(path, replace(weights, about=about))
    return path


def test_runs_network_is_asked_at_the_size_of_its_views(run_folder, checkpoint, tmp_path):
    (saved,) = (run_folder / "checkpoints").glob("*.safetensors")
    teacher = write(tmp_path / "teacher.safetensors", read_weights(checkpoint), image_size=96)
    sizes = {path: image_size_of(read_network(path, "teacher")) for path in (run_folder, saved)}
    assert sizes == {run_folder: 64, saved: 64}
    assert image_size_of(read_network(teacher, "teacher")) == 96
    assert image_size_of(read_network(checkpoint, "teacher")) == 224  # it does not know


@pytest.mark.parametrize("size", ["64", 31, None])
def test_size_that_is_none_is_refused(checkpoint, tmp_path, size):
    path = write(tmp_path / "teacher.safetensors", read_weights(checkpoint), image_size=size)
    with pytest.raises(ValueError, match="expected 32 to 1024"):
        image_size_of(read_network(path, "teacher"))


def test_run_whose_config_says_no_size_is_refused(run_folder):
    (run_folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say how large"):
        read_network(run_folder, "teacher")


def test_student_is_not_sought_where_the_teacher_is_alone(checkpoint, tmp_path):
    teacher = write(tmp_path / "teacher.safetensors", read_weights(checkpoint))
    with pytest.raises(ValueError, match=r"teacher\.safetensors holds the teacher alone"):
        read_network(teacher, "student")
    student = read_weights(checkpoint, "student")
    path = write(tmp_path / "student.safetensors", student, network="student")
    assert read_network(path, "student").state.keys() == student.state.keys()


def test_weights_that_are_not_finite_are_refused_by_name(checkpoint, tmp_path):
    weights = read_weights(checkpoint)
    weights.state["norm.weight"][0] = float("nan")
    path = write(tmp_path / "teacher.safetensors", weights)
    with pytest.raises(ValueError, match=r"tensor norm\.weight is not finite"):
        read_network(path, "teacher")
