"""Measures how long a server keeps others waiting: /health, and one chat stream after another.

    python -m tests.faults.probe http://127.0.0.1:8000

A program of its own, so that what the test does to the server does not slow down the clock. Each
line that it reads asks for the longest waits since the line before; it prints them, in seconds.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

_QUESTION = {
    "model": "base",
    "messages": [{"role": "user", "content": "Hi"}],
    "stream": True,
    "ignore_eos": True,
    "max_tokens": 300,
}


class Waits:
    """The longest time between two signs of life, since `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._longest, self._last = 0.0, time.perf_counter()

    def alive(self) -> None:
        with self._lock:
            now = time.perf_counter()
            self._longest, self._last = max(self._longest, now - self._last), now

    def take(self) -> float:
        """A wait that has not ended counts too."""
        self.alive()
        with self._lock:
            longest, self._longest = self._longest, 0.0
            return longest


def watch_health(address: str, waits: Waits) -> None:
    connection = http.client.HTTPConnection(address, timeout=60)
    while True:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        waits.alive()
        time.sleep(0.005)


def watch_stream(address: str, waits: Waits) -> None:
    while True:
        connection = http.client.HTTPConnection(address, timeout=60)
        body = json.dumps(_QUESTION)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        while line := answer.readline():
            assert not line.startswith(b"event: error"), answer.readline()
            waits.alive()
        connection.close()


def main() -> None:
    address = urlsplit(sys.argv[1]).netloc
    watched = {"health": (watch_health, Waits()), "chat": (watch_stream, Waits())}
    threads = [
        threading.Thread(target=watch, args=(address, waits), daemon=True)
        for watch, waits in watched.values()
    ]
    for thread in threads:
        thread.start()
    for _ in sys.stdin:
        longest = {name: waits.take() for name, (_, waits) in watched.items()}
        dead = [
            name for name, thread in zip(watched, threads, strict=True) if not thread.is_alive()
        ]
        print(json.dumps(longest | dict.fromkeys(dead, 1e9)), flush=True)


if __name__ == "__main__":
    main()
