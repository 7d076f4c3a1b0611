"""Runs Canaille, an identity provider, for `test_sign_in_provider.py`, in its own environment.

The first argument is the redirect address of our client. Prints one line of JSON, and then takes
one line for each change of a person's groups: `USER GROUP,GROUP`. Ends with its input.
"""

import datetime
import json
import os
import sys
import threading
import uuid

import pytest_iam
from canaille import create_app
from canaille.backends import Backend

USERS = {"ann": ["team-a"], "root": ["admins"], "eve": []}
PASSWORD = "correct horse battery"


def main() -> None:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    port = pytest_iam.portpicker.pick_unused_port()
    app = create_app(config=settings(port), env_file=".no-such-file")
    server = pytest_iam.Server(app, port, Backend.instance)
    threading.Thread(target=server.httpd.serve_forever, daemon=True).start()
    with app.app_context():
        print(json.dumps(filled(server, sys.argv[1])), flush=True)
        for line in sys.stdin:
            name, _, groups = line.strip().partition(" ")
            regroup(server, name, groups.split(",") if groups else [])
            print("done", flush=True)


def settings(port: int) -> dict[str, object]:
    key = pytest_iam.JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    return {
        "TESTING": True,
        "ENV_FILE": None,
        "SECRET_KEY": str(uuid.uuid4()),
        "WTF_CSRF_ENABLED": False,
        "PREFERRED_URL_SCHEME": "http",
        "SERVER_NAME": f"localhost:{port}",
        "CANAILLE": {
            "DATABASE": "memory",
            "JAVASCRIPT": False,
            "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc"]}},
        },
        "CANAILLE_OIDC": {"ACTIVE_JWKS": [key.as_dict(private=True)]},
    }


def filled(server: pytest_iam.Server, redirect: str) -> dict[str, object]:
    models, backend = server.models, server.backend
    for name, groups in USERS.items():
        user = models.User(
            formatted_name=name.title(),
            family_name=name.title(),
            user_name=name,
            emails=[f"{name}@example.com"],
            password=PASSWORD,
        )
        backend.save(user)
        regroup(server, name, groups)
    client = models.Client(
        client_id="verandah",
        client_secret="the secret of our client",
        client_name="Verandah",
        client_id_issued_at=datetime.datetime.now(datetime.UTC),
        contacts=["ops@example.com"],
        client_uri="http://localhost",
        redirect_uris=[redirect],
        grant_types=["authorization_code"],
        response_types=["code"],
        scope=["openid", "profile", "email", "groups"],
        token_endpoint_auth_method="client_secret_basic",
    )
    backend.save(client)
    client.audience = [client]  # only what is saved can be referred to
    backend.save(client)
    return {"url": server.url, "client": client.client_id, "secret": client.client_secret}


def regroup(server: pytest_iam.Server, name: str, groups: list[str]) -> None:
    """Leave the person in these groups alone; Canaille has no group without members."""
    models, backend = server.models, server.backend
    user = backend.get(models.User, user_name=name)
    for group in backend.query(models.Group):
        members = [member for member in group.members if member.user_name != name]
        if group.display_name in groups:
            members.append(user)
        group.members = members
        backend.save(group)
    have = {group.display_name for group in backend.query(models.Group)}
    for missing in set(groups) - have:
        backend.save(models.Group(display_name=missing, members=[user]))
    backend.reload(user)


if __name__ == "__main__":
    main()
