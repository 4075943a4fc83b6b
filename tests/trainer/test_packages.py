import sys
from pathlib import Path

import pytest

from tests.trainer.pictures import names
from trainer.prepare.packages import FetchError, Package, debian_folder, fetch, integrity

HELLO = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="  # of b"hello"
PACKAGE = Package(
    registry="npm", name="drawings", version="1.0", pattern="drawings-*.tgz", integrity=HELLO
)


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """An empty folder that alone is searched for commands; gives a function that puts one there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, program):
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{program}\n")
        path.chmod(0o755)

    return write


def test_the_client_is_asked_for_the_exact_version_once(tmp_path, clients):
    clients("npm", "Path('drawings-1.0.tgz').write_text('hello'); Path('asked').write_text('x')")
    cache = tmp_path / "new" / "cache"
    path = fetch(PACKAGE, cache)
    assert (path.name, path.read_bytes()) == ("drawings-1.0.tgz", b"hello")
    assert names(cache) == ["drawings-1.0.tgz"]
    clients("npm", "sys.exit('asked again')")
    assert fetch(PACKAGE, cache) == path


def test_bytes_that_are_not_the_expected_are_refused_and_not_kept(tmp_path, clients):
    clients("npm", "Path('drawings-1.0.tgz').write_text('other')")
    with pytest.raises(FetchError, match="damaged or another file"):
        fetch(PACKAGE, tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_damaged_file_in_the_cache_is_refused(tmp_path):
    (tmp_path / "drawings-1.0.tgz").write_bytes(b"hell")
    with pytest.raises(FetchError, match=r"drawings-1\.0\.tgz is damaged .* remove it"):
        fetch(PACKAGE, tmp_path)


def test_a_missing_client_is_named(tmp_path, clients):
    with pytest.raises(FetchError, match=r"npm is not installed: .*npm pack .*drawings@1\.0"):
        fetch(PACKAGE, tmp_path)


def test_a_client_that_fails_is_quoted(tmp_path, clients):
    clients("npm", "sys.exit('first\\n404 not found')")
    with pytest.raises(FetchError, match="failed: 404 not found"):
        fetch(PACKAGE, tmp_path)


def test_a_client_that_fails_without_a_word_gives_its_code(tmp_path, clients):
    clients("npm", "sys.exit(3)")
    with pytest.raises(FetchError, match="failed: exit code 3"):
        fetch(PACKAGE, tmp_path)


def test_a_client_that_gives_nothing_is_no_success(tmp_path, clients):
    clients("npm", "pass")
    with pytest.raises(FetchError, match="gave no drawings"):
        fetch(PACKAGE, tmp_path)


def test_pip_and_apt_are_asked_in_their_own_words():
    wheel = Package(registry="pypi", name="cells", version="2", pattern="cells-*.whl")
    assert wheel.command[:4] == [sys.executable, "-m", "pip", "download"]
    assert wheel.command[-1] == "cells==2"
    deb = Package(registry="debian", name="clips", pattern="clips_*.deb")
    assert deb.command == ["apt-get", "download", "clips"]


def test_a_debian_package_is_fetched_and_unpacked_once(tmp_path, clients):
    package = Package(registry="debian", name="clips", pattern="clips_*.deb")
    clients("apt-get", "Path('clips_1.0_all.deb').write_text('deb')")
    clients("dpkg-deb", "folder = Path(sys.argv[3]) / 'usr/clips'; folder.mkdir(parents=True)")
    folder = debian_folder(package, Path("/usr/clips"), tmp_path / "cache")
    assert folder == tmp_path / "cache" / "clips_1.0_all" / "usr" / "clips"
    assert folder.is_dir()
    clients("dpkg-deb", "sys.exit('asked again')")
    assert debian_folder(package, Path("/usr/clips"), tmp_path / "cache") == folder


def test_an_installed_debian_package_is_not_fetched(tmp_path, clients):
    package = Package(registry="debian", name="clips", pattern="clips_*.deb")
    assert debian_folder(package, tmp_path, tmp_path / "cache") == tmp_path


def test_integrity_is_written_as_npm_does(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    assert integrity(tmp_path / "a") == HELLO
