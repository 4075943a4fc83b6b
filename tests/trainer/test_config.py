import json

import pytest

from esvit.config import HeadConfig
from trainer.config import (
    CheckpointConfig,
    ComputeConfig,
    CropsConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    PretrainConfig,
)
from trainer.config_file import read_config, to_json
from trainer.recipes import RECIPES
from trainer.schedule import SchedulePlan

NONSENSE = [
    (DataConfig, {"path": "x", "images_per_epoch": 0}, "images_per_epoch is 0"),
    (DataConfig, {"path": "x", "mix": 0}, "mix is 0"),
    (DataConfig, {"path": "x", "min_side": 0}, "min_side is 0"),
    (DataConfig, {"path": "x", "max_bad_share": 1.5}, "max_bad_share is 1.5"),
    (CropsConfig, {"num_global": 0}, "num_global is 0"),
    (CropsConfig, {"num_local": -1}, "num_local is -1"),
    (CropsConfig, {"global_size": 100000}, "global_size is 100000, expected at most 2048 px"),
    (CropsConfig, {"num_global": 1, "num_local": 0}, "a single view makes no pair"),
    (CropsConfig, {"local_sizes": (96, 240)}, r"local_sizes are \(96, 240\), expected at most"),
    (CropsConfig, {"global_scale": (0.0, 1.0)}, "scale is"),
    (ModelConfig, {"arch": "vgg"}, "backbone is 'vgg', expected one of"),
    (ModelConfig, {"drop_path": 1.0}, "drop_path is 1.0"),
    (LossConfig, {"view_weight": 0, "region_weight": 0}, "expected a positive one"),
    (LossConfig, {"view_weight": -1}, "expected a positive one"),
    (LossConfig, {"student_temperature": 0}, "student_temperature is 0"),
    (LossConfig, {"center_momentum": 1.0}, "center_momentum is 1.0"),
    (ModelConfig, {"arch": "cvt_tiny", "start": "local"}, "start is local, which is for Swin"),
    (OptimConfig, {"batch": 0}, "batch is 0"),
    (OptimConfig, {"max_skipped": 0}, "max_skipped is 0"),
    (OptimConfig, {"base_lr": 0}, "base_lr is 0"),
    (OptimConfig, {"base_lr": float("nan")}, "base_lr is nan"),
    (OptimConfig, {"base_lr": float("inf")}, "base_lr is inf"),
    (OptimConfig, {"clip_norm": 0}, "clip_norm is 0"),
    (OptimConfig, {"freeze_epochs": -1}, "freeze_epochs is -1"),
    (ComputeConfig, {"images_per_pass": 0}, "images_per_pass is 0"),
    (CheckpointConfig, {"every_minutes": 0}, "every_minutes is 0"),
    (CheckpointConfig, {"keep_last": 1}, "keep_last is 1"),
    (CheckpointConfig, {"keep_every": -1}, "keep_every is -1"),
    (MonitorConfig, {"every": 0}, "every is 0"),
    (MonitorConfig, {"evaluate_images": 0}, "evaluate_images is 0"),
    (MonitorConfig, {"evaluate_every": -1}, "evaluate_every is -1"),
]


def config(tmp_path, **parts):
    return PretrainConfig(data=DataConfig(path="images"), out=tmp_path, **parts)


@pytest.mark.parametrize(("kind", "fields", "message"), NONSENSE)
def test_nonsense_is_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"init_epoch": 300}, "init_epoch is 300, expected 0 to 299"),
        ({"crops": CropsConfig(local_sizes=(3,))}, "expected at least 4 px"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(parts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **parts)


def test_views_are_the_published():
    specs = CropsConfig().specs
    assert [spec.size for spec in specs] == [224] * 2 + [96] * 8
    assert [spec.blur for spec in specs] == [1.0, 0.1] + [0.5] * 8
    assert [spec.solarize for spec in specs] == [0.0, 0.2] + [0.0] * 8


def test_local_views_may_be_of_several_sizes_or_none():
    assert [s.size for s in CropsConfig(local_sizes=(96, 64), num_local=1).specs[2:]] == [96, 64]
    assert len(CropsConfig(num_local=0).specs) == 2
    assert len(CropsConfig(local_sizes=()).specs) == 2
    assert len(CropsConfig(global_size=64, num_local=0).specs) == 2  # sizes of no views are none


@pytest.mark.parametrize("name", RECIPES)
def test_config_is_the_same_after_a_file(name, tmp_path):
    original = RECIPES[name]("images", tmp_path / "run")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(original)))
    assert read_config(path) == original


def test_config_with_every_kind_of_value_is_the_same_after_a_file(tmp_path):
    original = config(
        tmp_path,
        init=tmp_path / "weights.pth",
        crops=CropsConfig(local_sizes=(96, 64), global_scale=(0.25, 1.0)),
        model=ModelConfig(drop_path=0.3, head=HeadConfig(use_bn=True)),
        optim=OptimConfig(clip="all"),
        schedule=SchedulePlan(epochs=7, warmup_epochs=1),
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(original)))
    assert read_config(path) == original


def changed(fields, path, value):
    """Give fields with one value, named by its dotted path, replaced."""
    first, dot, rest = path.partition(".")
    return fields | {first: changed(fields[first], rest, value) if dot else value}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", "one", "seed is 'one', expected a whole number"),
        ("optim.clip", "none", "optim.clip is 'none', expected one of 'each', 'all'"),
        ("crops.local_sizes", 96, "crops.local_sizes is 96, expected a list"),
        ("crops.local_sizes", ["96"], "crops.local_sizes is '96', expected a whole number"),
        ("crops.local_sizes", [True], "crops.local_sizes is True, expected a whole number"),
        ("out", None, "out is None, expected a path"),
        ("optim.batch", True, "optim.batch is True, expected a whole number"),
        ("optim", 3, "optim is 3, expected an object"),
        ("optim.rate", 3, "unknown: optim.rate"),
        ("optim.batch", 0, "batch is 0"),
    ],
)
def test_file_of_another_kind_is_refused(path, value, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed(to_json(config(tmp_path)), path, value)))
    with pytest.raises(ValueError, match=rf"{file}: .*{message}"):
        read_config(file)


def test_file_that_is_no_json_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_config(file)
