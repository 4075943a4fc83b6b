"""Prometheus and promtool, which our monitoring is held against: found, fetched where that can be.

`python -m tests.service.prometheus` makes sure that they are there; `make test` calls it. They are
taken out of Debian's package without installing it: no root is needed, and no daemon starts.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("prometheus", "promtool")

OWN = Path(sys.prefix) / "prometheus"
"""Where they are put: beside the interpreter, so that they go when it goes."""

MISSING = """
############################################################################################
NO PROMETHEUS: alerts and dashboard are NOT TESTED by it. Put prometheus and promtool where
they are found (apt-get install prometheus) and run the tests again.
############################################################################################
"""


def find(name: str) -> str | None:
    """Give the path of the system's program, else of our own, None where neither is."""
    return shutil.which(name) or shutil.which(name, path=OWN)


def fetch() -> bool:
    """Fetch the package and take the programs out of it; tells whether that was done."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not _download(folder):
            subprocess.run(["apt-get", "update", "-qq"], check=False)
            if not _download(folder):
                return False
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
        OWN.mkdir(exist_ok=True)
        for program in NAMES:
            shutil.move(folder / "usr" / "bin" / program, OWN / program)
    return True


def _download(folder: Path) -> bool:
    """Have the package in a folder; False where apt does not know it or reaches no server."""
    command = ["apt-get", "download", "-qq", "prometheus"]
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def main() -> None:
    """Fetch the programs where they are missing, and say so loudly where that fails."""
    if not all(map(find, NAMES)) and not fetch():
        sys.stderr.write(MISSING)


if __name__ == "__main__":
    main()
