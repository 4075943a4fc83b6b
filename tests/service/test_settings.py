import os

import pytest
from pydantic import ValidationError

from service.images import ImageLimits
from service.settings import Settings


def test_defaults_are_those_that_the_documents_state():
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_body_bytes == 20_000_000
    assert settings.image_limits == ImageLimits()
    assert settings.num_threads == len(os.sched_getaffinity(0))


def test_every_setting_has_a_variable_of_its_name(monkeypatch):
    monkeypatch.setenv("ESVIT_MAX_IMAGES", "7")
    monkeypatch.setenv("ESVIT_IMAGE_FORMATS", "PNG, WEBP")
    monkeypatch.setenv("ESVIT_MAX_IMAGE_ASPECT", "9")
    monkeypatch.setenv("ESVIT_THREADS", "3")
    settings = Settings()
    assert settings.max_images == 7
    assert settings.image_limits == ImageLimits(max_aspect=9, formats=("PNG", "WEBP"))
    assert settings.num_threads == 3


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(ValidationError, match="max_pictures"):
        Settings(max_pictures=3)


def test_an_answer_of_the_largest_size_has_room():
    Settings(max_answer_numbers=100, max_answers_bytes=1600)
    with pytest.raises(
        ValidationError, match=r"expected at least 16 x max_answer_numbers \(1600\)"
    ):
        Settings(max_answer_numbers=100, max_answers_bytes=1599)


def test_limits_name_what_a_client_must_keep_to():
    limits = Settings(max_images=5).limits()
    assert limits["max_images"] == 5
    assert "model" not in limits
