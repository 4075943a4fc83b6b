"""Images by address in a network namespace, where private addresses really answer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.prison import ALLOWED, FORBIDDEN

ROOT = Path(__file__).parents[2]


def can_make_namespaces() -> bool:
    """Tell whether a network of its own can be had here."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    tried = subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True)
    return tried.returncode == 0


def test_no_way_leads_to_a_canary_on_a_private_address():
    if not can_make_namespaces():
        pytest.skip("NOT TESTED: no network namespace here (needs unshare and iproute2)")
    hosts = [host for host in (*FORBIDDEN, ALLOWED) if not host.startswith("127.")]
    commands = ["ip link set lo up", *(f"ip addr add {host}/32 dev lo" for host in hosts)]
    program = " && ".join([*commands, f"exec {sys.executable} -m tests.service.prison"])
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" UrlRefused\n") > 20
