"""The model that comes along, on emoji that it was not trained on, asked as a user asks it."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hog import hog
from service.app import create_app
from service.images import ImageLimits, decode
from service.model_file import read_model_info
from service.settings import Settings
from tests.service.server import serve

SAMPLE = Path(__file__).parents[1] / "reference" / "emoji" / "sample.zip"
VENDORS = ("google", "twitter")
HOG_RECALL = {1: 0.6, 5: 0.755}
"""At 1 and 5, of the gradients' histograms on the sample as scikit-image 0.26 computes them."""


@pytest.fixture(scope="module")
def drawings():
    """Files of each vendor, in one order of concepts."""
    with zipfile.ZipFile(SAMPLE) as archive:
        files = {Path(name).stem: archive.read(name) for name in archive.namelist()}
    concepts = sorted({stem.partition("__")[0] for stem in files})
    return {vendor: [files[f"{concept}__{vendor}"] for concept in concepts] for vendor in VENDORS}


def recall(features, k):
    """Share of drawings whose like by the other vendor is among the k most similar, both ways."""
    one, other = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in features)
    shares = []
    for cosines in (one @ other.T, other @ one.T):
        better = (cosines > np.diag(cosines)[:, None]).sum(axis=1)
        shares.append(np.mean(better < k))
    return float(np.mean(shares))


def of_gradients(files):
    images = [decode(data, ImageLimits()).image.convert("L") for data in files]
    return np.stack([hog(np.asarray(image)) for image in images])


def test_the_sample_holds_concepts_that_are_held_out():
    with zipfile.ZipFile(SAMPLE) as archive:
        stems = {Path(name).stem for name in archive.namelist()}
    concepts = {stem.partition("__")[0] for stem in stems}
    assert len(concepts) == 100
    assert stems == {f"{concept}__{vendor}" for concept in concepts for vendor in VENDORS}
    digests = [int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) for concept in concepts]
    assert all(digest % 5 == 0 for digest in digests)


def test_gradients_find_as_much_as_recorded(drawings):
    features = [of_gradients(drawings[vendor]) for vendor in VENDORS]
    assert {k: recall(features, k) for k in HOG_RECALL} == HOG_RECALL


def test_embeddings_find_more_than_gradients(drawings):
    settings = Settings()
    if read_model_info(settings.model).training is None:
        pytest.skip("the model that comes along is untrained")
    with serve(create_app(settings)) as client:
        features = [embeddings(client, drawings[vendor]) for vendor in VENDORS]
    for k, of_hog in HOG_RECALL.items():
        assert recall(features, k) > of_hog


def embeddings(client, files):
    rows = []
    for start in range(0, len(files), 50):
        form = [("file", ("emoji.png", data)) for data in files[start : start + 50]]
        answer = client.post("/embed", files=form, headers={"accept": "application/x-npy"})
        assert answer.status_code == 200
        rows.append(np.load(io.BytesIO(answer.content)))
    return np.concatenate(rows)
