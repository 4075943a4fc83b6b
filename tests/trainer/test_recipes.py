from pathlib import Path

import pytest

from trainer.recipes import RECIPES
from trainer.schedule import peak_lr

PUBLISHED = {
    # GPUs, images on each, epoch at which the region task came, whether prototypes keep length 1
    "swin-tiny-w7": (16, 32, 0, False),
    "swin-tiny-w14": (16, 32, 200, False),
    "swin-small-w7": (16, 32, 0, False),
    "swin-small-w14": (32, 16, 180, False),
    "swin-base-w7": (16, 32, 200, False),
    "swin-base-w14": (64, 8, 200, True),
    "cvt-tiny": (16, 64, 200, False),
    "vil-2262": (16, 32, 200, False),
    "deit-small-p16": (16, 64, 0, False),
    "resnet50": (16, 64, 200, False),
}


def recipe(name):
    return RECIPES[name]("images", Path("run"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name):
    config = recipe(name)
    gpus, images, region_epoch, norm_last_layer = PUBLISHED[name]
    assert config.recipe == name
    assert config.model.arch == name.replace("-", "_")
    assert config.optim.batch == gpus * images
    assert config.compute.images_per_pass == images
    assert config.init_epoch == region_epoch
    assert config.model.head.norm_last_layer is norm_last_layer
    assert config.model.head.num_prototypes == 65536
    is_vit = name.startswith("deit")  # the paper has it with the view task alone
    weights = (1.0, 0.0) if is_vit else (0.5, 0.5)
    assert (config.loss.view_weight, config.loss.region_weight) == weights
    plan = config.schedule
    assert (plan.epochs, plan.warmup_epochs, plan.warmup_teacher_epochs) == (300, 10, 30)
    assert (plan.weight_decay, plan.final_weight_decay, plan.momentum) == (0.04, 0.4, 0.996)
    assert peak_lr(config.optim.base_lr, config.optim.batch) == pytest.approx(gpus * images / 512e3)


def test_every_recipe_is_told_by_its_name_and_its_docstring():
    for name, function in RECIPES.items():
        assert recipe(name).recipe == name
        assert function.__name__ == name.replace("-", "_")
        assert function.__doc__


def test_recipes_of_small_machines_see_small_views():
    assert [spec.size for spec in recipe("nano").crops.specs] == [64] * 2 + [32] * 4
    assert max(spec.size for spec in recipe("smoke").crops.specs) == 64
