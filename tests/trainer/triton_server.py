"""A Triton Inference Server of this machine: the one that NVIDIA's PyTriton package carries."""

import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

BACKENDS = Path(__file__).parent / "triton_backend"
SOON_S = 60.0


@contextmanager
def serve(environment: Path, repository: Path, work: Path) -> Iterator[httpx.Client]:
    """Serve a model repository while the block runs, and give a client of it.

    Args:
        environment: Folder of a virtual environment that holds `nvidia-pytriton`.
        repository: Folder of models.
        work: An empty folder for what the server needs beside them.
    """
    (packages,) = environment.glob("lib/python*/site-packages")
    server = packages / "pytriton" / "tritonserver"
    version = packages.parent.name.removeprefix("python")
    # Copies: Triton follows no link out of the folder of its backends.
    shutil.copytree(BACKENDS, work, dirs_exist_ok=True)
    shutil.copytree(server / "backends" / "python", work / "python")
    shutil.copytree(server / "python_backend_stubs" / version, work / "python", dirs_exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    command = [
        server / "bin" / "tritonserver",
        *(f"--model-repository={repository}", f"--backend-directory={work}"),
        *("--http-address=127.0.0.1", f"--http-port={port}"),
        *("--allow-grpc=false", "--allow-metrics=false"),
        "--disable-auto-complete-config",  # what the configuration does not say is not guessed
    ]
    variables = os.environ | {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
    }
    log = work / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S) as client:
            _wait_until_ready(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(SOON_S)


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until every model is loaded and warm."""
    end = time.monotonic() + SOON_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.get("/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise AssertionError(f"Triton did not become ready:\n{log.read_text()}")
