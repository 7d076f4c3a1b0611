"""A provider that is dead, slow, endless or wrong costs a sign-in, and no more."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("authlib", reason="authlib is not installed: it comes with the extra oidc")

from joserfc.jwk import RSAKey

from server.errors import SignInFailed, Unavailable, VerandahError
from server.tenancy.sign_in.bounded_http import MOST_BYTES, BoundedHttp
from server.tenancy.sign_in.identities import Person
from server.tenancy.sign_in.oidc_provider import OidcProvider, ProviderOptions
from server.tenancy.sign_in.pending import Goal, Pending
from tests.tenancy.sign_in.tokens import CLIENT, NOW, RSA, claims, key_set, signed

PENDING = Pending("s", "n1", "v", NOW + 600, Goal())
REDIRECT = "https://verandah.example/auth/callback"


class Answers(ThreadingHTTPServer):
    """Answers each path with a document, or with what a function writes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.issuer = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.sent: list[tuple[str, str | None]] = []
        self.by_path: dict[str, Any] = {
            "/.well-known/openid-configuration": {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "response_types_supported": ["code"],
            },
            "/keys": key_set(RSA),
            "/token": self.token(),
            "/userinfo": {"sub": "u1", "groups": ["told"]},
        }

    def token(self, key: Any = RSA, **changes: Any) -> dict[str, Any]:
        body = claims("n1", **({"iss": self.issuer} | changes))
        return {"access_token": "a", "token_type": "Bearer", "id_token": signed(body, key)}

    def describe(self, **changes: Any) -> None:
        self.by_path["/.well-known/openid-configuration"] |= changes


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        length = int(self.headers.get("content-length", 0))
        form = self.rfile.read(length).decode()
        self.server.sent.append((form, self.headers.get("authorization")))
        answer = self.server.by_path.get(self.path)
        if callable(answer):
            answer(self)
            return
        body = json.dumps(answer).encode()
        self.send_response(200 if answer is not None else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def provider(answers: Answers, clock: Clock | None = None, **changes: Any) -> OidcProvider:
    options: dict[str, Any] = {
        "issuer": answers.issuer,
        "client": CLIENT,
        "secret": "the secret",
        "scopes": ("openid", "email"),
        "groups_claim": "groups",
        "needs_groups": True,
    }
    http = BoundedHttp(timeout_s=0.4)
    return OidcProvider(ProviderOptions(**(options | changes)), http=http, clock=clock or Clock())


def person(answers: Answers, **changes: Any) -> Person:
    return asyncio.run(provider(answers, **changes).person("c", PENDING, REDIRECT))


def failure(answers: Answers, **changes: Any) -> VerandahError:
    began = time.monotonic()
    with pytest.raises((Unavailable, SignInFailed)) as caught:
        person(answers, **changes)
    assert time.monotonic() - began < 10
    assert "the secret" not in str(caught.value)
    return caught.value


def test_the_browser_is_sent_with_state_nonce_and_challenge(answers: Answers) -> None:
    address = asyncio.run(provider(answers).address(PENDING, REDIRECT))
    assert address.startswith(f"{answers.issuer}/authorize?")
    for part in ("state=s", "nonce=n1", "code_challenge_method=S256", "scope=openid+email"):
        assert part in address.replace("%20", "+")
    assert "the+secret" not in address and "code_verifier" not in address


def test_a_right_answer_tells_the_person(answers: Answers) -> None:
    assert person(answers) == Person(answers.issuer, "u1", "Ann", "ann@example.com", ["team-a"])
    form, authorization = answers.sent[1]
    assert "code_verifier=v" in form and "the+secret" not in form
    assert authorization is not None and authorization.startswith("Basic ")


@pytest.mark.parametrize(
    ("changes", "secret", "sent"),
    [
        ({"token_endpoint_auth_methods_supported": ["client_secret_post"]}, "abc", "secret=abc"),
        ({}, None, "client_id=verandah"),
    ],
)
def test_the_client_shows_itself_as_the_provider_takes_it(
    answers: Answers, changes: dict[str, Any], secret: str | None, sent: str
) -> None:
    answers.describe(**changes)
    person(answers, secret=secret)
    form, authorization = answers.sent[1]
    assert sent in form and authorization is None


@pytest.mark.parametrize(
    ("changes", "email"),
    [
        ({"email_verified": False}, ""),
        ({"email_verified": None}, ""),
        ({"email_verified": "true"}, ""),
        ({"email_verified": 1}, ""),
        ({"email": ["a@b.c"]}, ""),
        ({}, "ann@example.com"),
    ],
)
def test_only_a_verified_email_counts(
    answers: Answers, changes: dict[str, Any], email: str
) -> None:
    answers.by_path["/token"] = answers.token(**changes)
    assert person(answers).email == email


@pytest.mark.parametrize(
    ("groups", "found"),
    [("one", ["one"]), (["a", 1, None, "b"], ["a", "b"]), ({"a": 1}, []), (7, []), ([], [])],
)
def test_groups_are_texts(answers: Answers, groups: Any, found: list[str]) -> None:
    answers.by_path["/token"] = answers.token(groups=groups)
    assert list(person(answers).groups) == found


def test_groups_that_the_token_lacks_come_from_userinfo(answers: Answers) -> None:
    answers.by_path["/token"] = answers.token(groups=None)
    assert person(answers).groups == ["told"]
    answers.by_path["/userinfo"] = {"sub": "u2", "groups": ["told"]}
    assert "of another person" in str(failure(answers))
    answers.by_path["/userinfo"] = {"sub": "u1"}
    assert list(person(answers).groups) == []


def test_groups_that_are_elsewhere_are_not_taken_for_none(answers: Answers) -> None:
    answers.by_path["/token"] = answers.token(groups=None, _claim_names={"groups": "src1"})
    assert "more groups than" in str(failure(answers))


def dribble(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(200):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


def dribble_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    dribble(handler)


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def send_without_end(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        return


def redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("location", "/keys")
    handler.end_headers()


def send(body: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
@pytest.mark.parametrize(
    "answer",
    [
        dribble,
        dribble_body,
        say_nothing,
        send_without_end,
        redirect,
        hang_up,
        send(b"no JSON"),
        send(b"[" * 100_000),
        send(b"[]"),
        send(b'{"a":"' + b"a" * MOST_BYTES + b'"}'),
        send(b"{}", 500),
        send(b"\xff"),
    ],
)
def test_a_hostile_answer_ends_in_time(answers: Answers, path: str, answer: Any) -> None:
    answers.handle_error = lambda *_: None  # type: ignore[method-assign]
    answers.by_path[path] = answer
    assert isinstance(failure(answers), Unavailable)


def test_a_refusal_is_told_and_bounded(answers: Answers) -> None:
    refused = json.dumps({"error": "invalid_grant", "error_description": "x" * 10_000}).encode()
    answers.by_path["/token"] = send(refused, 400)
    error = failure(answers)
    assert isinstance(error, SignInFailed) and len(str(error)) < 1000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"issuer": "https://other.example"}, "calls itself"),
        ({"issuer": None}, "calls itself"),
        ({"token_endpoint": "http://internal.example/token"}, "is not an https:// address"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "is not an https:// address"),
        ({"jwks_uri": 7}, "is not an address"),
        ({"jwks_uri": "file:///etc/passwd"}, "is not an https:// address"),
        ({"userinfo_endpoint": "http://10.0.0.1/"}, "is not an https:// address"),
        ({"token_endpoint": "https://[::1"}, "cannot be used"),
    ],
)
def test_a_wrong_description_is_refused(
    answers: Answers, changes: dict[str, Any], told: str
) -> None:
    answers.describe(**changes)
    assert told in str(failure(answers))


def test_a_dead_provider_is_asked_no_more_than_once_in_some_seconds(answers: Answers) -> None:
    clock = Clock()
    one = provider(answers, clock)
    answers.by_path["/.well-known/openid-configuration"] = None

    async def ask() -> None:
        for _ in range(5):
            with pytest.raises(Unavailable):
                await one.address(PENDING, REDIRECT)

    asyncio.run(ask())
    assert len(answers.asked) == 1


def test_new_keys_are_read_when_a_token_names_them_but_not_for_each_token(
    answers: Answers,
) -> None:
    clock = Clock()
    one, new = provider(answers, clock), RSAKey.generate_key(2048, {"kid": "new"})

    async def sign_in() -> Person:
        return await one.person("c", PENDING, REDIRECT)

    async def rotate() -> None:
        await sign_in()
        answers.by_path["/token"] = answers.token(new)
        for _ in range(3):
            with pytest.raises(SignInFailed):
                await sign_in()
        assert answers.asked.count("/keys") == 1
        answers.by_path["/keys"] = key_set(RSA, new)
        clock.now += 61
        await sign_in()
        await sign_in()
        assert answers.asked.count("/keys") == 2
        clock.now += 120  # the sign-in's own time is not checked here
        await sign_in()
        assert answers.asked.count("/keys") == 2

    asyncio.run(rotate())
