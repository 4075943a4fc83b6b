import pytest
import torch
from rich.console import Console

from service.contract import PreprocessSpec
from tests.trainer.pictures import picture
from trainer.evaluation import retrieval
from trainer.evaluation.config import RetrievalConfig
from trainer.evaluation.retrieval import Pictures, look_up, measure_retrieval
from trainer.evaluation.subject import Frozen, Subject


def mean_colour(pixels, _output):
    levels = pixels.float().mean((2, 3))
    return torch.cat([levels, 60 * torch.ones(len(levels), 1)], dim=1)


def subject(config):
    frozen = Frozen(
        file="f",
        network=None,
        arch="a",
        spec=PreprocessSpec(resize=16, crop=14),
        digest="d",
        arithmetic="x",
        run=mean_colour,
    )
    return Subject(frozen, config, Console(stderr=True))


def ask(path, **options):
    config = RetrievalConfig(data=str(path), num_workers=0, use_cache=False, **options)
    return measure_retrieval(config, subject(config))


def fill(folder, names):
    """Pictures whose brightness is the number in front of their names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(path.stem.partition("_")[0]), kind="PNG"))
    return folder


def written_out(queries, gallery):
    """First right place and average precision of each query, with loops."""
    found = []
    for feature, identity, number in zip(*queries, strict=True):
        rows = [
            (float(torch.cosine_similarity(feature, f, dim=0)), bool(i == identity))
            for f, i, n in zip(*gallery, strict=True)
            if n != number
        ]
        rows.sort(key=lambda row: -row[0])
        places = [place for place, (_, is_right) in enumerate(rows) if is_right]
        if places:
            precisions = [(found + 1) / (place + 1) for found, place in enumerate(places)]
            found.append((places[0], sum(precisions) / len(precisions)))
    return found


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_ranking_equals_the_written_out(block, monkeypatch):
    monkeypatch.setattr(retrieval, "_COSINES", block)
    generator = torch.Generator().manual_seed(0)
    pictures = Pictures(
        torch.randn(30, 6, generator=generator),
        torch.randint(0, 8, (30,), generator=generator),
        torch.arange(30),
    )
    queries = pictures.of(range(0, 30, 2))
    found = look_up(queries, pictures)
    expected = written_out(queries, pictures)
    assert len(expected) > 10
    assert found.first.tolist() == [first for first, _ in expected]
    assert found.average_precision.tolist() == pytest.approx([ap for _, ap in expected])


def test_folders_of_queries_and_gallery(tmp_path):
    gallery = fill(tmp_path / "gallery", ["dark/0.png", "bright/150.png", "grey/70.png"])
    queries = fill(tmp_path / "queries", ["dark/5.png", "bright/60.png", "other/1.png"])
    found = ask(gallery, queries=str(queries), k=(1, 2))
    assert found["recall_at_1"] == 0.5
    assert found["recall_at_2"] == 1
    assert found["map"] == pytest.approx((1 + 1 / 2) / 2)
    (direction,) = found["directions"]
    assert direction["queries"] == 2
    assert direction["queries_without_match"] == 1
    assert direction["gallery"] == 3


def test_without_queries_each_looks_among_the_others(tmp_path):
    fill(tmp_path, ["dark/0.png", "dark/8.png", "bright/150.png", "bright/145.png", "lone/70.png"])
    found = ask(tmp_path)
    assert found["recall_at_1"] == 1
    assert found["directions"][0]["queries_without_match"] == 1


def test_across_a_column_both_ways_with_conditions(tmp_path):
    lines = ["path,concept,vendor,split"]
    names = []
    for level, concept in ((0, "moon"), (70, "cat"), (140, "sun"), (100, "")):
        for shift, vendor in ((0, "a"), (4, "b")):
            names.append(f"{level + shift}_{vendor}.png")
            split = "val" if concept == "sun" and vendor == "a" else "train"
            lines.append(f"{names[-1]},{concept},{vendor},{split}")
    fill(tmp_path, names)
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    options = {"identity": "concept", "across": "vendor", "k": (1,)}
    found = ask(tmp_path, **options)
    assert found["recall_at_1"] == 1
    pairs = [(d["queries_from"], d["gallery_from"], d["queries"]) for d in found["directions"]]
    assert pairs == [("a", "b", 3), ("b", "a", 3)]
    held_out = ask(tmp_path, **options, ask=("split=val",))
    assert [d["queries"] for d in held_out["directions"]] == [1, 0]
    assert held_out["recall_at_1"] == 1
    lines[3] = lines[3].replace(",a,", ",,")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    unsaid = ask(tmp_path, **options)["directions"]
    assert [(d["queries_from"], d["gallery"]) for d in unsaid] == [("a", 3), ("b", 2)]
    lines[3] = lines[3].replace(",,", ",a,")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    fewer = ask(tmp_path, **options, where=("concept!=cat",))
    assert [d["gallery"] for d in fewer["directions"]] == [2, 2]


def test_training_and_test_images_are_no_identities(tmp_path):
    fill(tmp_path, ["train/dark/0.png", "train/bright/150.png", "val/dark/3.png"])
    with pytest.raises(ValueError, match="has the folders train, val, which are no identities"):
        ask(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"identity": "concept"}, "no column 'concept'"),
        ({"across": "vendor"}, "no column 'vendor'"),
        ({"where": ("split=val",)}, "no column 'split'"),
        ({"ask": ("split",)}, "expected column=value"),
        ({"where": ("class=horse",)}, "no image meets the conditions"),
        ({"ask": ("class=horse",)}, "no query meets the conditions"),
        ({"k": (0,)}, "expected 1 or more"),
        ({"across": "class", "queries": "x"}, "takes no --queries"),
        ({"queries": "nothing/here"}, "nothing/here"),
        ({"queries": "pipe:cat x.tar"}, "can only be streamed"),
    ],
)
def test_request_that_makes_no_sense_is_refused(tmp_path, options, message):
    fill(tmp_path, ["dark/0.png", "dark/3.png", "bright/150.png"])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ask(tmp_path, **options)
