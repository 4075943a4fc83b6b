import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.bulk.embedder import BatchEmbedder, Wanted
from service.errors import ModelError
from tests.service.known import OTHER, SQUARE, A, B, expected, unit
from tests.service.tiny_model import C, D, L


@pytest.fixture
def embedder():
    made = BatchEmbedder(Wanted(regions=True))
    yield made
    made.close()


def test_a_batch_of_files_becomes_a_batch_of_columns(embedder):
    files = np.array([A, b"no picture", B], object)
    columns = embedder({"path": np.array(["a", "b", "c"]), "bytes": files, "other": files})
    assert columns["path"].tolist() == ["a", "b", "c"]
    assert columns["error"].tolist() == ["", "undecodable_image", ""]
    assert columns["message"][1].startswith("bytes are no image")
    assert columns["sha256"].tolist() == [hashlib.sha256(file).hexdigest() for file in files]
    assert columns["width"].tolist() == columns["height"].tolist() == [36, 0, 36]
    for row, picture in ((0, SQUARE), (2, OTHER)):
        truth = expected(picture)
        np.testing.assert_allclose(
            columns["embedding"][row], unit(truth["embedding"]).ravel(), atol=1e-5
        )
        regions = unit(truth["regions"]).reshape(L, C)
        np.testing.assert_allclose(columns["regions"][row], regions, atol=1e-3)
    assert np.isnan(columns["embedding"][1]).all()


def test_threads_share_an_embedder(embedder):
    def ask(picture):
        return embedder({"path": ["x"], "bytes": [picture]})["embedding"][0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [A, B] * 8))
    np.testing.assert_allclose(found[::2], [found[0]] * 8, atol=1e-6)
    np.testing.assert_allclose(found[1::2], [found[1]] * 8, atol=1e-6)


def test_other_outputs_can_be_wanted():
    embedder = BatchEmbedder(Wanted(output="last_blocks"))
    columns = embedder({"path": ["x"], "bytes": [A]})
    embedder.close()
    assert columns["embedding"].shape == (1, D)
    assert "regions" not in columns


def test_a_model_that_is_not_there_says_so():
    with pytest.raises(ModelError, match=r"missing\.onnx is not there"):
        BatchEmbedder(Wanted(model="missing.onnx"))
