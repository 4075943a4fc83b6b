"""Every target takes its seeds, and a second of damage."""

import random

import pytest

from service.errors import ServiceError
from tests.fuzz.__main__ import damage
from tests.fuzz.targets import TARGETS, Target, holds

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read(name):
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_read_or_refused(name):
    rng = random.Random(1)
    for _ in range(300):
        holds(TARGETS[name], damage(rng.choice(TARGETS[name].seeds), TARGETS[name].seeds, rng))


@pytest.mark.parametrize("error", [ValueError("x"), ServiceError("a fault of our own")])
def test_what_may_not_come_out_does(error):
    def breaks(_: bytes) -> None:
        raise error

    with pytest.raises((ValueError, AssertionError)):
        holds(Target(breaks, [b""]), b"")
