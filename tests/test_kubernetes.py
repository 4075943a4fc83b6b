"""The manifests are valid, and say of the service what is true of it."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from service.metrics import Metrics
from service.routes import router
from service.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker" / "kubernetes"
VERSIONS = ["1.30", "1.37"]


def read(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


KUSTOMIZATION = read("kustomization.yaml")[0]
RESOURCES = {
    resource["kind"]: resource for name in KUSTOMIZATION["resources"] for resource in read(name)
}
POD = RESOURCES["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def test_every_file_is_listed():
    files = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", RESOURCES)
def test_a_manifest_meets_the_schema(kind, version):
    kubernetes_validate.validate(RESOURCES[kind], version, strict=True)


def test_a_manifest_that_is_wrong_does_not_meet_it():
    wrong = {**RESOURCES["Service"], "spec": {"ports": [{"port": "eighty"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_what_kustomize_renders_meets_the_schema():
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True
    )
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {resource["kind"] for resource in rendered} == {*RESOURCES, "ConfigMap"}
    for resource in rendered:
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "esvit"


def test_selectors_find_the_pods():
    labels = POD["metadata"]["labels"]
    assert RESOURCES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert RESOURCES["Service"]["spec"]["selector"] == labels
    assert RESOURCES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert RESOURCES["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    target = RESOURCES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == RESOURCES["Deployment"]["metadata"]["name"]
    assert target["kind"] == "Deployment"


def test_the_autoscaler_and_the_docs_name_a_series_that_is_given():
    (metric,) = RESOURCES["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {family.name for family in Metrics().registry.collect()}
    assert name in (ROOT / "docs" / "operations.md").read_text()


def test_probes_ask_what_is_answered():
    paths = {route.path for route in router.routes}
    probes = [CONTAINER[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for probe in probes:
        assert probe["httpGet"]["path"] in paths
        assert ports[probe["httpGet"]["port"]] == Settings.model_fields["port"].default


def test_settings_are_settings():
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    given = dict(literal.split("=", 1) for literal in generated["literals"])
    fields = {name.removeprefix("ESVIT_").lower(): value for name, value in given.items()}
    settings = Settings(**fields)
    (model_mount,) = (m for m in CONTAINER["volumeMounts"] if m["name"] == "models")
    assert settings.model.is_relative_to(model_mount["mountPath"])
    assert model_mount["readOnly"]


def test_nothing_is_allowed_that_is_not_needed():
    (uid,) = re.findall(r"^USER (\d+)", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert POD["spec"]["securityContext"]["runAsUser"] == int(uid)
    assert POD["spec"]["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not POD["spec"]["automountServiceAccountToken"]
    assert RESOURCES["NetworkPolicy"]["spec"]["egress"] == []


def test_a_pod_has_the_time_to_finish():
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = Settings.model_fields["shutdown_grace_s"].default
    assert POD["spec"]["terminationGracePeriodSeconds"] > pause + grace
