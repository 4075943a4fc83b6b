"""A real Prometheus, with the configuration of `docker/monitoring`, at a service that works."""

import json
import math
import re
import socket
import subprocess
import time

import httpx
import pytest
import yaml

from tests.service.calls import post_raw
from tests.service.pictures import png, scene
from tests.service.prometheus import find
from tests.service.test_monitoring import MONITORING, alerts, panels

SOON_S = 60.0
LABEL = re.compile(r"{{\s*(\w+)\s*}}")

pytestmark = pytest.mark.skipif(not find("prometheus"), reason="needs prometheus")


def configure(folder, target):
    """Write the configuration as it is, but for where services are found and how often asked."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "200ms")
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until(find_out):
    """Ask again until there is an answer; gives it."""
    end = time.monotonic() + SOON_S
    while not (found := find_out()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def prometheus(client, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = configure(folder, f"{client.base_url.host}:{client.base_url.port}")
    command = [find("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=SOON_S) as asked:
            until(lambda: is_up(asked))
            yield asked
    finally:
        process.terminate()
        process.wait()


def is_up(prometheus):
    """Tell whether Prometheus is ready and has reached the service."""
    try:
        is_ready = prometheus.get("/status/buildinfo").status_code == 200
    except httpx.TransportError:
        return False
    return is_ready and ask(prometheus, 'up{job="esvit"} == 1')


def ask(prometheus, expression):
    """Give a query's result: metrics with labels and a value."""
    answer = prometheus.get("/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def call_once(client):
    """Make a call that succeeds and one that is refused."""
    assert post_raw(client, "/embed", png(scene(36, 36))).status_code == 200
    assert post_raw(client, "/embed", b"no image").status_code == 422


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, id=f"{panel['title']}-{target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ],
)
def test_a_panel_shows_numbers_under_names(prometheus, client, target):
    expression = target["expr"].replace("$__rate_interval", "1m")

    def numbers():
        call_once(client)
        found = ask(prometheus, expression)
        return [one for one in found if math.isfinite(float(one["value"][1]))]

    for one in until(numbers):
        assert set(LABEL.findall(target["legendFormat"])) <= one["metric"].keys()


def test_every_alert_is_evaluated_and_none_fires(prometheus, client):
    def evaluated():
        call_once(client)
        (group,) = prometheus.get("/rules").json()["data"]["groups"]
        rules = group["rules"]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = until(evaluated)
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in alerts()]
    assert {rule["health"] for rule in rules} == {"ok"}, json.dumps(rules)
    assert {rule["state"] for rule in rules} <= {"inactive", "pending"}
