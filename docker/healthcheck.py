"""Exit 0 when the server in this container answers GET /health with 200.

Usage: healthcheck.py [PORT]    (8000 unless told)
"""

import sys
import urllib.request


def main() -> int:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    # A proxy set for the container's own downloads must not be asked for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=4) as answer:
            if answer.status == 200:
                return 0
            print(f"/health answered {answer.status}", file=sys.stderr)
    except OSError as error:  # refused, timed out, or an HTTP status of 4xx or 5xx
        print(f"/health: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
