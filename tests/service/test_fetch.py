"""Images by address, against a canary on this machine's loopback."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from service.addresses import Address, UrlRules
from service.app import create_app
from service.errors import Overloaded, UrlNotFetched, UrlRefused
from service.fetch import Fetcher
from tests.service.calls import post_raw, refused
from tests.service.canary import canary
from tests.service.known import A, B, good
from tests.service.server import serve

LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.fixture(scope="module")
def store():
    with canary(A) as server:
        yield server


@pytest.fixture
def base(store):
    store.asked.clear()
    store.hosts.clear()
    return f"http://127.0.0.1:{store.server_port}"


def rules(store, **changes) -> UrlRules:
    allowed = UrlRules(hosts=(f"127.0.0.1:{store.server_port}",), networks=LOOPBACK, timeout_s=20)
    return allowed._replace(**changes)


def fetch(rules: UrlRules, *addresses: str, max_bytes_held=10**9, resolve=None):
    async def main():
        seam = {"resolve": resolve} if resolve else {}
        fetcher = Fetcher(rules, max_bytes_held=max_bytes_held, **seam)
        async with fetcher.fetched([Address(address) for address in addresses]) as files:
            result = list(files)
        assert fetcher._held._num_bytes == 0
        return result

    return asyncio.run(main())


def test_an_address_becomes_its_file_and_the_rest_stays(store, base):
    async def main():
        fetcher = Fetcher(rules(store), max_bytes_held=10**9)
        async with fetcher.fetched([B, Address(f"{base}/picture")]) as files:
            return files

    assert asyncio.run(main()) == [B, A]
    assert store.hosts == [base.removeprefix("http://")]


@pytest.mark.parametrize(
    "address",
    [
        *["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1/", "data:text/plain,x"],
        *["http://", "http:///x", "//127.0.0.1/x", "", "x", "http://127.0.0.1:0/"],
        *[
            "http://user@HOST/picture",
            "http://user:pw@HOST/picture",
            "http://localhost:PORT/picture",
        ],
        *["http://127.0.0.1/picture", "https://HOST:1/picture", "http://[::1]:PORT/picture"],
        *["http://evil@HOST:80/", "http://HOST@evil.invalid/", "http://\u2488.\u2488:PORT/"],
        *["http://" + "a" * 3000, "http://exa mple/", "http://[::1/", "http://127.0.0.1:99999/"],
        *["http://\ud800/", "http://xn--a/", "http://127.0.0.1:PORT\t@evil/", "\0"],
    ],
)
def test_addresses_off_the_list_are_not_asked(store, base, address):
    address = address.replace("HOST", base.removeprefix("http://"))
    (error,) = fetch(rules(store), address.replace("PORT", str(store.server_port)))
    assert isinstance(error, UrlRefused | UrlNotFetched)
    assert store.asked == []


def test_loopback_is_refused_where_its_network_is_not_named(store, base):
    (error,) = fetch(rules(store, networks=()), f"{base}/picture")
    assert isinstance(error, UrlRefused)
    assert store.asked == []


def test_redirects_are_followed_up_to_the_limit(store, base):
    assert fetch(rules(store, max_redirects=3), f"{base}/chain?2") == [A]
    (error,) = fetch(rules(store, max_redirects=3), f"{base}/chain?3")
    assert "more than 3 redirects" in error.message


@pytest.mark.parametrize(
    "target",
    [
        *["http://169.254.169.254/latest/meta-data/", "http://10.0.0.5/", "http://[::1]/"],
        *[
            "file:///etc/passwd",
            "http://localhost/",
            "//127.0.0.2:PORT/picture",
            "http://[::ffff:7f00:1]/",
        ],
    ],
)
def test_every_redirect_is_checked_as_the_first_address(store, base, target):
    target = target.replace("PORT", str(store.server_port))
    (error,) = fetch(rules(store), f"{base}/to?{target}")
    assert isinstance(error, UrlRefused)
    assert len(store.asked) == 1


def test_a_name_is_resolved_once_and_the_connection_goes_where_it_was_checked(store, base):
    asked = []

    async def rebinding(host, port):
        asked.append((host, port))
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.9.9.9")]

    port = store.server_port
    named = rules(store, hosts=(f"store.invalid:{port}",))
    assert fetch(named, f"http://store.invalid:{port}/picture", resolve=rebinding) == [A]
    assert asked == [("store.invalid", port)]
    assert store.hosts == [f"store.invalid:{port}"]


@pytest.mark.parametrize("others", [["10.0.0.5"], ["::1"], ["169.254.169.254", "1.1.1.1"]])
def test_a_name_that_also_means_what_is_forbidden_is_refused(store, base, others):
    async def mixed(host, port):
        return [ip_address(one) for one in ("127.0.0.1", *others)]

    (error,) = fetch(rules(store), f"{base}/picture", resolve=mixed)
    assert isinstance(error, UrlRefused)
    assert store.asked == []


def test_no_cookies_and_nothing_of_the_environment_go_along(store, base, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    store.headers.clear()
    assert fetch(rules(store), f"{base}/to?/picture") == [A]
    assert {"Cookie", "Authorization"} & store.headers[-1].keys() == set()


def test_sizes_are_counted_while_they_come(store, base):
    exact = rules(store, max_bytes=1000)
    assert fetch(exact, f"{base}/zeros?1000") == [bytes(1000)]
    for path in ("zeros?1001", "endless"):
        (error,) = fetch(exact, f"{base}/{path}")
        assert isinstance(error, UrlNotFetched)
        assert error.limit == 1000


def test_images_of_a_call_share_its_bytes(store, base):
    answers = fetch(rules(store, max_bytes=1000), *[f"{base}/zeros?400"] * 3)
    assert sum(isinstance(answer, bytes) for answer in answers) == 2


def test_calls_together_are_bounded(store, base):
    (error,) = fetch(rules(store), f"{base}/zeros?1001", max_bytes_held=1000)
    assert isinstance(error, Overloaded)


@pytest.mark.parametrize("path", ["slow?30", "nothing-there", "packed"])
def test_what_gives_no_file_says_nothing_of_why(store, base, path):
    limit = 0.2 if path.startswith("slow") else 20
    (error,) = fetch(rules(store, timeout_s=limit), f"{base}/{path}")
    assert isinstance(error, UrlNotFetched)
    assert error.message == "no file came from this address"


def test_a_port_where_nobody_listens_says_the_same(store):
    (error,) = fetch(UrlRules(hosts=("127.0.0.1:9",), networks=LOOPBACK), "http://127.0.0.1:9/")
    assert error.message == "no file came from this address"


@pytest.fixture(scope="module")
def fetching(settings, store):
    opened = {
        "fetch_urls": True,
        "url_hosts": (f"127.0.0.1:{store.server_port}",),
        "url_networks": LOOPBACK,
    }
    with serve(create_app(settings.model_copy(update=opened))) as client:
        yield client


def test_an_image_by_address_is_answered_as_its_file(fetching, base):
    by_address = fetching.post("/embed", json={"images": [{"url": f"{base}/picture"}]})
    assert good(by_address) == good(post_raw(fetching, "/embed", A))
    openai = fetching.post("/v1/embeddings", json={"input": [f"{base}/picture"]})
    assert openai.json()["data"][0]["embedding"] == good(by_address)["embeddings"][0]
    pair = {"source": {"url": f"{base}/picture"}, "target": {"url": f"{base}/to?/picture"}}
    assert good(fetching.post("/correspond", json=pair))["matches"]


def test_a_bad_address_among_images_is_named_and_the_others_answered(fetching, base):
    images = [{"url": f"{base}/picture"}, {"url": "http://169.254.169.254/"}, {"url": f"{base}/no"}]
    content = good(fetching.post("/embed", json={"images": images}))
    assert [vector is None for vector in content["embeddings"]] == [False, True, True]
    assert [error["code"] for error in content["errors"]] == ["url_refused", "url_not_fetched"]
    assert "canary" not in str(content)


def test_by_default_nothing_is_fetched(client, store, base):
    response = client.post("/embed", json={"images": [{"url": f"{base}/picture"}]})
    refused(response, 422, "urls_disabled")
    assert store.asked == []
