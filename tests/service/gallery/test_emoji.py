"""Recall on held-out emoji: through the gallery as by the evaluation of the shipped model."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import httpx
import pytest

from service.app import create_app
from service.settings import DEFAULT_MODEL, Settings
from tests.service.server import serve

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "tests" / "reference" / "emoji" / "sample.zip"
BATCH = 50


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("gallery")
    settings = Settings(
        engine="onnxruntime", device="cpu", threads=2, gallery_path=folder, deadline_s=600
    )
    with serve(create_app(settings)) as client:
        client.timeout = 600  # the machine may be busy
        yield client


def drawings(vendor: str) -> dict[str, bytes]:
    """Give a vendor's drawings by concept."""
    with zipfile.ZipFile(SAMPLE) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"__{vendor}.png")]
        return {PurePosixPath(n).name.partition("__")[0]: archive.read(n) for n in names}


def recall_through_the_gallery(client: httpx.Client, asked: str, shown: str) -> float:
    """Index one vendor's drawings, look each of the other's up, and count the right ones."""
    client.post("/gallery/delete", json={"all": True}).raise_for_status()
    gallery = list(drawings(shown).items())
    for start in range(0, len(gallery), BATCH):
        part = gallery[start : start + BATCH]
        names = json.dumps([concept for concept, _ in part])
        files = [("file", ("name", data)) for _, data in part]
        client.post("/gallery/index", files=files, data={"names": names}).raise_for_status()
    queries = drawings(asked)
    right = 0
    for concept, data in queries.items():
        answer = client.post("/gallery/search?limit=1", content=data).json()
        right += answer["results"][0]["name"] == concept
    return right / len(queries)


@pytest.mark.slow
def test_recall_equals_the_evaluations(client, tmp_path):
    command = [sys.executable, "-m", "trainer.evaluate", "retrieval", "--model", str(DEFAULT_MODEL)]
    command += [
        "--data",
        str(SAMPLE),
        "--identity",
        "stem",
        "--across",
        "tail",
        "--cache",
        str(tmp_path),
    ]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    directions = json.loads(shown)["directions"]
    assert len(directions) == 2
    for direction in directions:
        asked, gallery = direction["queries_from"], direction["gallery_from"]
        assert direction["queries"] == direction["gallery"] == 100
        assert recall_through_the_gallery(client, asked, gallery) == direction["recall_at_1"]
        assert 0.05 < direction["recall_at_1"] < 1.0
