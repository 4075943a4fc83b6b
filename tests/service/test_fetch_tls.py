"""Images by https: the name is proven, the socket goes to the address that was checked."""

import asyncio
import ssl
from ipaddress import ip_address, ip_network

import pytest
import trustme

from service.addresses import Address, UrlRules
from service.app import create_app
from service.errors import UrlNotFetched
from service.fetch import Fetcher
from service.settings import Settings
from tests.service.canary import canary
from tests.service.known import A, good
from tests.service.server import serve

NAME = "store.invalid"
"""No resolver knows it: who comes by this name was sent by the one address that was checked."""

CHECKED = "127.0.0.2"
LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def greeted():
    """The names that clients asked for in their greeting (SNI)."""
    return []


@pytest.fixture(scope="module")
def store(authority, greeted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, CHECKED).configure_cert(context)
    context.sni_callback = lambda _socket, name, _context: greeted.append(name)
    with canary(A, CHECKED, tls=context) as server:
        yield server


@pytest.fixture
def fetch(store, greeted, ca_file):
    store.hosts.clear()
    greeted.clear()

    def run(host, ca_file=ca_file):
        async def checked(_host, _port):
            return [ip_address(CHECKED)]

        async def main():
            rules = UrlRules(
                hosts=(f"{host}:{store.server_port}",),
                networks=LOOPBACK,
                timeout_s=30,
                ca_file=ca_file,
            )
            fetcher = Fetcher(rules, max_bytes_held=10**9, resolve=checked)
            address = Address(f"https://{host}:{store.server_port}/picture")
            async with fetcher.fetched([address]) as files:
                return files[0]

        return asyncio.run(main())

    return run


def test_sni_and_host_carry_the_name_and_the_socket_goes_to_what_was_checked(fetch, store, greeted):
    assert fetch(NAME) == A
    assert greeted == [NAME]
    assert store.hosts == [f"{NAME}:{store.server_port}"]


@pytest.mark.parametrize("host", ["other.invalid", f"www.{NAME}", "127.0.0.3"])
def test_a_certificate_of_another_name_is_refused(fetch, store, host):
    assert isinstance(fetch(host), UrlNotFetched)
    assert store.hosts == []


def test_an_authority_that_nobody_named_is_refused(fetch, store):
    assert isinstance(fetch(NAME, ca_file=None), UrlNotFetched)
    assert store.hosts == []


def test_an_address_that_is_a_number_is_proven_as_one(fetch, store):
    assert fetch(CHECKED) == A
    assert store.hosts == [f"{CHECKED}:{store.server_port}"]


def test_the_environment_adds_no_authority(fetch, store, ca_file, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    assert isinstance(fetch(NAME, ca_file=None), UrlNotFetched)
    assert store.hosts == []


def test_the_setting_names_an_authority(settings, store, ca_file):
    opened = {
        "fetch_urls": True,
        "url_schemes": ("https",),
        "url_hosts": (f"{CHECKED}:{store.server_port}",),
        "url_networks": LOOPBACK,
        "url_ca_file": ca_file,
    }
    with serve(create_app(settings.model_copy(update=opened))) as client:
        url = f"https://{CHECKED}:{store.server_port}/picture"
        assert good(client.post("/embed", json={"images": [{"url": url}]}))["errors"] == []


@pytest.mark.parametrize("text", [None, "", "no certificate"])
def test_a_file_without_authorities_is_refused_at_start(tmp_path, text):
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="url_ca_file"):
        Settings(url_ca_file=path)
