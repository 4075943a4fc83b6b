"""Archives from public package registries, fetched by the registries' own clients.

What was fetched stays in a cache folder under the archive's name; an archive that someone has put
there is as good. npm and PyPI archives are held against a digest; Debian's are whatever the
release at hand has, checked by apt against the distribution's signature.
"""

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)


class FetchError(OSError):
    """An archive that cannot be had; the message says by which command and why."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An archive of a registry.

    Attributes:
        registry: Where it lies; decides the client.
        name: Of the package.
        version: Exact; empty for Debian, where the release decides.
        pattern: Of the archive's file name.
        integrity: Of the archive, `sha512-` or `sha256-` and base64, as npm writes it; empty for
            Debian.
    """

    registry: Literal["npm", "pypi", "debian"]
    name: str
    version: str = ""
    pattern: str
    integrity: str = ""

    @property
    def command(self) -> list[str]:
        """Give the client's words that put the archive into the current folder."""
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        if self.registry == "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            return [*pip, "--only-binary=:all:", f"{self.name}=={self.version}"]
        return ["apt-get", "download", self.name]


def fetch(package: Package, cache: Path) -> Path:
    """Give the archive of a package, from the cache or by its registry's client.

    Raises:
        FetchError: if the client is missing or fails, or the bytes are not the expected ones.
    """
    found = sorted(cache.glob(package.pattern))
    if found:
        _check(package, found[-1])
        return found[-1]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        downloaded = _download(package, Path(folder))
        _check(package, downloaded)
        return downloaded.replace(cache / downloaded.name)


def debian_folder(package: Package, installed: Path, cache: Path) -> Path:
    """Give the folder of a Debian package: as installed, else of the fetched archive.

    Raises:
        FetchError: if the archive cannot be had.
    """
    if installed.is_dir():
        return installed
    return unpack_deb(fetch(package, cache)) / installed.relative_to("/")


def unpack_deb(archive: Path) -> Path:
    """Unpack a Debian package beside itself, once, and give the folder.

    Raises:
        FetchError: if dpkg-deb is missing or fails.
    """
    folder = archive.with_suffix("")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpack-") as partial:
            contents = Path(partial) / "contents"
            _run(["dpkg-deb", "-x", str(archive.resolve()), str(contents)], archive.parent)
            contents.replace(folder)
    return folder


def integrity(path: Path, algorithm: str = "sha256") -> str:
    """Give the digest of a file as npm writes it: `sha256-` and base64."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def _download(package: Package, folder: Path) -> Path:
    """Let the client put the archive into an empty folder."""
    # apt gives its downloads to a user of its own, who cannot enter a private folder.
    folder.chmod(0o755)
    logger.info("fetching: %s", " ".join(package.command))
    _run(package.command, folder)
    found = sorted(folder.glob(package.pattern))
    if not found:
        raise FetchError(f"{' '.join(package.command)} gave no {package.pattern}")
    return found[-1]


def _run(command: list[str], folder: Path) -> None:
    """Run a client in a folder; its last words become the error's."""
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed: it is needed for `{' '.join(command)}`")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FetchError(f"`{' '.join(command)}` failed: {words[-1]}")


def _check(package: Package, archive: Path) -> None:
    """Refuse an archive whose bytes are not the expected ones."""
    algorithm = package.integrity.partition("-")[0]
    if algorithm and integrity(archive, algorithm) != package.integrity:
        raise FetchError(f"{archive} is damaged or another file: remove it and start again")
