"""What Prometheus, Grafana and the alerts ask for is what the service gives."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.service.calls import post_raw
from tests.service.pictures import png, scene
from tests.service.prometheus import find

MONITORING = Path(__file__).parents[2] / "docker" / "monitoring"
NAME = re.compile(r"\b(?:esvit|process)_[a-z_]+\b")

needs_promtool = pytest.mark.skipif(not find("promtool"), reason="needs promtool")


@pytest.fixture(scope="module")
def series(client):
    """Give the names of all series, after a call that succeeds and one that is refused."""
    post_raw(client, "/embed", png(scene(36, 36)))
    post_raw(client, "/embed", b"no image")
    lines = client.get("/metrics").text.splitlines()
    return {re.split(r"[ {]", line)[0] for line in lines if not line.startswith("#")}


def alerts():
    content = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def panels():
    return json.loads((MONITORING / "grafana" / "esvit.json").read_text())["panels"]


EXPRESSIONS = [rule["expr"] for rule in alerts()] + [
    target["expr"] for panel in panels() for target in panel["targets"]
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_series_asked_for_is_given(series, expression):
    names = set(NAME.findall(expression))
    assert names - series == set()
    assert names or "up{" in expression


@pytest.mark.parametrize(
    "name",
    [
        "esvit_queue_images",
        "esvit_in_flight_images",
        "esvit_in_flight_limit_images",
        "esvit_decode_queue_seconds_bucket",
        "esvit_decode_seconds_bucket",
        "esvit_queue_seconds_bucket",
        "esvit_batch_images_bucket",
        "esvit_inference_seconds_bucket",
        "esvit_encode_seconds_bucket",
        "esvit_refusals_total",
        "esvit_reloads_total",
        "esvit_model_info",
    ],
)
def test_what_one_scales_and_judges_by_is_given_and_shown(series, name):
    assert name in series
    asked = {found for expression in EXPRESSIONS for found in NAME.findall(expression)}
    assert name in asked or name.replace("_bucket", "_sum") in asked


def test_panels_do_not_overlap_and_ask_the_provisioned_source():
    (source,) = yaml.safe_load((MONITORING / "grafana" / "datasource.yml").read_text())[
        "datasources"
    ]
    cells = set()
    for panel in panels():
        at = panel["gridPos"]
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & cells
        assert max(x for x, _ in own) < 24
        assert panel["datasource"]["uid"] == source["uid"]
        cells |= own


def test_compose_mounts_files_that_are_there():
    compose = yaml.safe_load((MONITORING.parents[1] / "compose.yaml").read_text())
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert service["profiles"] == ["monitoring"]
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (MONITORING.parents[1] / source).exists()


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_prometheus_finds_no_fault(arguments):
    done = subprocess.run(
        [find("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_reads_the_series(client):
    text = client.get("/metrics").text
    done = subprocess.run(
        [find("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
