"""`verandah login`: signs a person in by a browser, and keeps a key for them."""

import argparse
import contextlib
import secrets
import socket
import sys
import time
import webbrowser
from base64 import urlsafe_b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from clients.python import Client
from server.cli.arguments.credentials import keep
from server.cli.arguments.durations import seconds
from server.cli.arguments.server_address import url_of
from server.cli.display.output import short_moment
from server.config import BadOption

EXAMPLES = """examples:
  verandah login                                    on http://127.0.0.1:8000
  verandah login --url https://verandah.example --owner team-a
  verandah login --no-browser                       on a machine without one: paste a code
  verandah login --admin                            a key of the server's admin, if you are one

Your browser opens the server's sign-in. The key that you get is yours, expires, and is kept where
only you can read it; the other commands use it from then on. `verandah logout` gives it back.
"""

_PATIENCE_S = 600.0
_DONE = b"You are signed in. You may close this page and go back to the terminal.\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server's address (VERANDAH_URL)")
    parser.add_argument(
        "--owner", help="the owner that the key is for; needed if you are in several"
    )
    parser.add_argument("--admin", action="store_true", help="a key of the server's admin")
    parser.add_argument("--name", help="what people call the key (this machine's name)")
    parser.add_argument(
        "--expires", help="how long it is good: 30m, 12h, 7d (the longest that the server allows)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="show the address, and ask for the code"
    )


def run(options: argparse.Namespace) -> int:
    if options.admin and options.owner:
        raise BadOption("--admin is for the whole server: leave --owner out")
    life = None if options.expires is None else seconds("--expires", options.expires)
    name = options.name or f"verandah login on {socket.gethostname()}"
    verifier = secrets.token_urlsafe(48)
    with Client(url_of(options)) as client:
        client.admin.require_sign_in()
        code = _typed(client, verifier) if options.no_browser else _sent(client, verifier)
        key = client.admin.redeem_sign_in(
            code, verifier, name=name, owner=options.owner, admin=options.admin, expires_in_s=life
        )
        path = keep(client.base_url, key)
    whose = "the server's admin" if key["admin"] else key["owner"]
    person = key["user"]["email"] or key["user"]["name"]
    print(f"signed in as {person}, for {whose}, until {short_moment(key['expires_at'])}")
    print(f"the key {key['id']} is kept in {path}")
    return 0


def _address(client: Client, verifier: str, port: int, state: str) -> str:
    challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")
    query = {"port": port, "code_challenge": challenge, "program_state": state}
    return f"{client.base_url}/auth/login?{urlencode(query)}"


def _typed(client: Client, verifier: str) -> str:
    print(f"open this address in a browser:\n\n  {_address(client, verifier, 0, '')}\n")
    print("code: ", end="", flush=True)
    code = sys.stdin.readline().strip()
    if not code:
        raise BadOption("no code was given: run `verandah login` again")
    return code


def _sent(client: Client, verifier: str) -> str:
    """The code that the browser brings to a port of this machine."""
    state = secrets.token_urlsafe(16)
    with _Listener(state) as listener:
        address = _address(client, verifier, listener.server_port, state)
        print(f"opening your browser; if it does not open, go to:\n\n  {address}\n", flush=True)
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)
        deadline = time.monotonic() + _PATIENCE_S
        while not listener.code and time.monotonic() < deadline:
            listener.handle_request()
        if not listener.code:
            raise BadOption(
                f"nobody has signed in for {_PATIENCE_S / 60:g} minutes: run `verandah login` "
                "again, or with --no-browser if the browser is on another machine"
            )
        return listener.code


class _Listener(HTTPServer):
    """Waits for the browser to come back. What lacks the state is another's, and is passed over."""

    timeout = 1.0

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.code = ""


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0  # who connects and says nothing keeps the browser waiting no longer
    server: _Listener

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        sent, code = query.get("state", [""])[0], query.get("code", [""])[0]
        if not code or not secrets.compare_digest(sent.encode(), self.server.state.encode()):
            self.send_error(404)
            return
        self.server.code = code
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(_DONE)))
        self.end_headers()
        self.wfile.write(_DONE)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line would hold the code."""
