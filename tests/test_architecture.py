"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"esvit", "trainer", "service", "benchmarks", "tests"}
SHARED = {
    "attention",
    "colours",
    "containers",
    "contract",
    "errors",
    "images",
    "model_file",
    "parity",
    "preprocess",
    "regions",
    "resample",
}
"""Modules of the service that the trainer may use: what is evaluated is what is served."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Give the full names of what a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(package: str) -> set[str]:
    return {name.partition(".")[0] for path in modules(package) for name in imports(path)}


def test_importing_the_service_imports_no_torch():
    program = "import sys, service.app, service.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", sorted(SHARED))
def test_what_is_shared_with_the_trainer_needs_no_server(module):
    foreign = imports(ROOT / "service" / f"{module}.py")
    assert not {"fastapi", "onnxruntime", "openvino", "pydantic"} & {
        name.partition(".")[0] for name in foreign
    }
    ours = {name.split(".")[1] for name in foreign if name.startswith("service.")}
    assert ours <= SHARED


def test_contract_needs_the_standard_library_only():
    assert {name.partition(".")[0] for name in imports(ROOT / "service" / "contract.py")} <= set(
        sys.stdlib_module_names
    )


def test_the_service_knows_nothing_of_ours_and_no_torch():
    assert imported_packages("service") & (OURS | {"torch", "torchvision"}) == {"service"}


def test_esvit_knows_nothing_of_ours_but_itself():
    assert imported_packages("esvit") & OURS <= {"esvit"}


def test_esvit_uses_torchvision_for_resnet_only():
    users = {
        path.name
        for path in modules("esvit")
        if any(name.startswith("torchvision") for name in imports(path))
    }
    assert users <= {"vision.py", "resnet.py"}


def test_no_package_imports_the_trainer():
    for package in ("esvit", "service"):
        assert "trainer" not in imported_packages(package)


def test_the_trainer_takes_from_the_service_only_what_is_shared():
    for path in modules("trainer"):
        for name in imports(path):
            if name.partition(".")[0] == "service":
                assert name.split(".")[1] in SHARED, f"{path} imports {name}"


def test_only_the_images_module_opens_images_of_clients():
    openers = {
        path.name
        for path in modules("service")
        if any(
            isinstance(node, ast.Attribute)
            and node.attr == "open"
            and isinstance(node.value, ast.Name)
            and node.value.id == "Image"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert openers == {"images.py"}


IMPORTS_ONNX_RUNTIME = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("service", "trainer", "benchmarks")
    for path in modules(package)
    if "onnxruntime" in {name.partition(".")[0] for name in imports(path)}
]

ORDER_PROBE = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

os.environ.pop("ORT_DISABLE_TELEMETRY", None)
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import onnxruntime
"""


def test_modules_that_import_onnx_runtime_are_found():
    assert "trainer.export_onnx" in IMPORTS_ONNX_RUNTIME


@pytest.mark.parametrize("module", IMPORTS_ONNX_RUNTIME)
def test_onnx_runtime_is_told_not_to_report_home_before_it_is_imported(module):
    done = subprocess.run(
        [sys.executable, "-c", ORDER_PROBE, module],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1"]
