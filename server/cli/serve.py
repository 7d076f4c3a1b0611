"""`verandah serve`: checks its arguments, takes its port and runs the server."""

import argparse
import contextlib
import errno
import socket
from collections.abc import Iterator

from server.cli.arguments.options import add_settings, read_fields, set_log_level
from server.config import BadOption, Settings
from server.wiring.default_base import with_base
from server.wiring.process import exit_on_sigterm, say, slow_imports
from server.wiring.start_checks import check_reach, check_settings, check_sign_in

EXAMPLES = """examples:
  verandah serve                                   at http://127.0.0.1:8000
  verandah serve --model smollm2-q4_1              once `verandah fetch smollm2-q4_1` was run
  verandah serve --model Qwen/Qwen3-0.6B --device cuda
  verandah serve --model /models/mine --port 9000 --api-key secret
  VERANDAH_HOME=/data VERANDAH_HOST=0.0.0.0 VERANDAH_API_KEY=secret verandah serve

Llama, Mistral, Qwen2, Qwen3 and Gemma 3 are the fastest on CUDA; docs/models.md has the memory that
each needs, and the others that run.

Then ask it with any OpenAI client: base_url is http://127.0.0.1:8000/v1.
"""

add_options = add_settings

# Without reading, after which a client's connection is closed; before the responses give it up.
_STALLED_S = 40.0


def run(options: argparse.Namespace) -> int:
    settings = with_base(read_fields(options, Settings), say)
    set_log_level(settings)
    exit_on_sigterm()
    check_settings(settings)
    check_reach(settings)
    check_sign_in(settings)
    with _bound(settings) as listener:
        say(f"starting a server of {settings.model}, with its home in {settings.home_path}")
        with slow_imports():
            from server.cli.running.http_server import run_server

        run_server(settings, listener)
    return 0


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket that is bound but does not listen: clients are refused until the server is ready."""
    host, port = settings.host, settings.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadOption(f"--host {host} is not an address of this machine ({reason})") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it; only Linux has it
            stalled_ms = int(_STALLED_S * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)
        try:
            listener.bind(address)
        except OSError as error:
            raise BadOption(_why_not(error, host, port)) from error
        yield listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        remedy = "another program listens there: stop it, or choose another --port"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = "ports below 1024 need more rights: choose another --port"
    elif error.errno == errno.EADDRNOTAVAIL:
        remedy = "it is not an address of this machine: choose another --host"
    else:
        remedy = f"{error.strerror}: choose another --host or --port"
    return f"cannot listen at {host}:{port}: {remedy}"
