"""The OpenAPI description, held against the running service by schemathesis."""

import base64

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    status_code_conformance,
)

from service import schemas
from service.app import create_app
from service.gallery import schemas as gallery
from service.schemas import ErrorAnswer
from tests.service.known import A, B
from tests.service.pictures import jpeg
from tests.service.server import serve

IMAGES = [base64.b64encode(data).decode() for data in (A, B, jpeg(), b"no image", b"")]
schemathesis.openapi.format("image-base64", st.sampled_from(IMAGES))

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]

ANSWERS = {
    "/embed": schemas.EmbedAnswer,
    "/regions": schemas.RegionsAnswer,
    "/correspond": schemas.CorrespondAnswer,
    "/attention": schemas.AttentionAnswer,
    "/info": schemas.InfoAnswer,
    "/gallery": gallery.PageAnswer,
    "/gallery/index": gallery.IndexAnswer,
    "/gallery/search": gallery.SearchAnswer,
    "/gallery/similar": gallery.SearchAnswer,
    "/gallery/duplicates": gallery.DuplicatesAnswer,
    "/gallery/delete": gallery.DeleteAnswer,
}
"""Held by the models themselves: schemathesis misreads `prefixItems`, which tuples become."""


def hold_all(client, num_examples: int) -> int:
    """Call every endpoint as its description allows and forbids; gives how often."""
    document = f"{client.base_url}/openapi.json"
    num_calls = 0
    for found in schemathesis.openapi.from_url(document).get_all_operations():

        @examples(
            max_examples=num_examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=found.ok().as_strategy())
        def hold(case) -> None:
            nonlocal num_calls
            num_calls += 1
            response = case.call()
            assert response.status_code == 200 or len(response.content) <= 16_000
            case.validate_response(response, checks=CHECKS)
            if response.headers.get("content-type") == "application/json":
                model = ANSWERS.get(case.path) if response.status_code == 200 else ErrorAnswer
                assert model is None or model.model_validate_json(response.content)

        hold()
    return num_calls


@pytest.fixture
def client_of_gallery(settings, tmp_path):
    with serve(create_app(settings.model_copy(update={"gallery_path": tmp_path}))) as client:
        yield client


def test_the_description_holds(client_of_gallery):
    assert hold_all(client_of_gallery, 5) >= 14


def test_the_description_holds_without_a_gallery(client):
    assert hold_all(client, 1) >= 7


@pytest.mark.slow
def test_the_description_holds_for_very_many_calls(client_of_gallery):
    assert hold_all(client_of_gallery, 150) > 300
