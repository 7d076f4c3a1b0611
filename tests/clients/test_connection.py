"""What a client says when it cannot reach its server, or reaches another."""

import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from clients.python import ApiError, BadAddress, Client, ConnectionFailed
from tests.api.running import Running

FAR = "http://verandah.example:8000"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def said(client: Client) -> str:
    with client, pytest.raises((ConnectionFailed, ApiError)) as caught:
        client.models()
    return str(caught.value)


def failing(error: Exception) -> httpx.MockTransport:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    return httpx.MockTransport(fail)


def answering(status: int, **answer: object) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _request: httpx.Response(status, **answer))  # type: ignore[arg-type]


def test_an_address_may_lack_its_scheme(server: Running) -> None:
    for address in (server.url.removeprefix("http://"), f" {server.url}/v1/ "):
        with Client(address) as client:
            assert client.models() == ["base"]
            assert client.base_url == server.url


@pytest.mark.parametrize(
    "address",
    ["", "8000", ":8000", "localhost:x", "ftp://a", "http://", "http://a?b=c", "http://a#b", "a b"],
)
def test_what_is_no_address_is_told_with_an_example(address: str) -> None:
    with pytest.raises(BadAddress, match="write http://HOST:PORT"):
        Client(address)


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", "a\x00"])
def test_a_key_that_no_header_holds(key: str) -> None:
    with pytest.raises(BadAddress, match="the API key has characters"):
        Client(api_key=key)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            httpx.ConnectError("refused"),
            "no server answers at http://127.0.0.1:8000 (refused)",
        ),
        (httpx.ConnectTimeout(""), "no server answers at http://127.0.0.1:8000 within 10 s"),
        (httpx.ReadTimeout(""), "was silent for 600 s: it may be busy or stopped"),
        (httpx.RemoteProtocolError("gone"), "broke off its answer (gone): it may have stopped"),
        (httpx.ReadError(""), "broke off its answer (ReadError)"),
        (
            httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER]"),
            "write http:// if it has no certificate",
        ),
    ],
)
def test_each_failure_has_its_own_words(error: Exception, told: str) -> None:
    assert told in said(Client(transport=failing(error)))


@pytest.mark.parametrize(
    ("transport", "told"),
    [
        (answering(404, json={"detail": "Not Found"}), "answered 404 to GET /v1/models, not as"),
        (answering(502, text="<html>"), "answered 502 to GET /v1/models, not as Verandah does"),
        (answering(200, text="<html>"), "answered 200 to GET /v1/models, not as Verandah does"),
        (answering(200, json=[]), "answered 200 to GET /v1/models, not as Verandah does"),
        (answering(301, headers={"location": "https://b/"}), "and redirects to https://b/, not"),
    ],
)
def test_another_server_is_told_apart(transport: httpx.MockTransport, told: str) -> None:
    message = said(Client(transport=transport))
    assert told in message and "check the address, which ends before /v1" in message


def test_a_path_too_many(server: Running) -> None:
    message = said(Client(f"{server.url}/api/v1"))
    assert f"the server at {server.url}/api answered 404 to GET /api/v1/models" in message


def test_an_unknown_path_of_the_right_server_keeps_its_words(server: Running) -> None:
    with Client(server.url) as client, pytest.raises(ApiError, match="there is no GET /v1/fine"):
        client.job("a/b")


def test_an_id_is_one_part_of_a_path(server: Running) -> None:
    with Client(server.url) as client, pytest.raises(ApiError, match=r"pirate\?x#y"):
        client.job("pirate?x#y")


class TestProxies:
    def test_this_machine_is_asked_without_one(
        self, server: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        with Client(server.url) as client:
            assert client.models() == ["base"]

    def test_one_in_between_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        message = said(Client(FAR))
        assert message.endswith("proxy was asked; NO_PROXY=verandah.example leaves it out")
        monkeypatch.setenv("NO_PROXY", "verandah.example")
        refused = failing(httpx.ConnectError("refused"))
        assert "proxy" not in said(Client(FAR, transport=refused))

    @pytest.mark.parametrize("proxy", ["nonsense://x", "http://[::"])
    def test_one_that_cannot_be_used(self, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", proxy)
        with pytest.raises(BadAddress, match="proxy cannot be used"):
            Client(FAR)


@pytest.fixture
def peer() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that says the same to everyone and hangs up. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def start(words: bytes) -> str:
            def speak() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(words)

            threading.Thread(target=speak, daemon=True).start()
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\ncontent-"])
def test_a_peer_that_speaks_no_http(peer: Callable[[bytes], str], words: bytes) -> None:
    assert "broke off its answer (" in said(Client(peer(words)))


def test_https_to_a_server_of_http(peer: Callable[[bytes], str]) -> None:
    message = said(Client(f"https://{peer(b'HTTP/1.1 400 Bad Request')}"))
    assert "no safe connection to the server at https://127.0.0.1" in message
