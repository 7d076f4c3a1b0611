"""/auth: sign-in by the provider, for browsers and for `verandah login`."""

import re
from typing import Annotated, Final
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from server.api.app_services import CurrentServices, Services
from server.api.gate import actor_of, client_address
from server.api.jobs.job_documents import Document
from server.api.sign_in.session_cookie import PENDING, SESSION, cookie_in, set_cookie
from server.api.wire import Text, WireModel, only_known_query
from server.db.audit_trail import Actor, act_as
from server.errors import InvalidRequest, NotFound, Unauthorized
from server.tenancy.principal import Principal
from server.tenancy.sign_in.addresses import is_this_machine
from server.tenancy.sign_in.pending import LIFE_S, Goal
from server.tenancy.sign_in.signing_in import SigningIn

# Not on the OpenAPI page: all but two of these are for browsers, and none for OpenAI's clients.
router = APIRouter(prefix="/auth", include_in_schema=False)

_LONGEST_PAGE = 512
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_QUERY_BYTES = 8192
_NOT_KEPT: Final = {"cache-control": "no-store", "referrer-policy": "no-referrer"}
_CODE_PAGE: Final = (
    "You are signed in. Copy this code to the terminal where you ran `verandah login`, within two "
    "minutes.\nIf you did not run it yourself, close this page and give the code to nobody.\n\n"
)

_Short = Annotated[str, Query(max_length=128)]


async def _enabled(request: Request, services: CurrentServices) -> SigningIn:
    if services.signing_in is None:
        raise NotFound(
            "this server has no sign-in: whoever runs it starts it with --oidc-issuer; an API key "
            "needs none"
        )
    act_as(Actor(address=client_address(request.scope)))  # who it is, the sign-in says
    return services.signing_in


CurrentSignIn = Annotated[SigningIn, Depends(_enabled)]


class CodeRedemption(WireModel):
    """What a program sends for its key."""

    code: Text = Field(max_length=256)
    code_verifier: Text = Field(max_length=256)
    name: Text = "verandah login"
    owner: Text | None = None
    admin: bool = False
    expires_in_seconds: int | None = None


@router.get("/login", dependencies=[Depends(only_known_query)])
async def login(
    request: Request,
    services: CurrentServices,
    sign_in: CurrentSignIn,
    next: Annotated[str, Query(description="The page to come back to.")] = "/",
    port: Annotated[int | None, Query(ge=0, le=65535)] = None,
    code_challenge: _Short = "",
    program_state: _Short = "",
) -> Response:
    """Send the browser to the provider. A program sends its `port` and `code_challenge`."""
    elsewhere = _other_name(request, sign_in.public_url)
    if elsewhere:
        return RedirectResponse(elsewhere, 303)
    if (port is None) != (not code_challenge):
        raise InvalidRequest("send port and code_challenge, or neither", param="code_challenge")
    if code_challenge and not _CHALLENGE.fullmatch(code_challenge):
        raise InvalidRequest("code_challenge is not one of S256", param="code_challenge")
    goal = Goal(_own_page(next), code_challenge, port or 0, program_state)
    address, kept = await sign_in.begin(goal, services.threads.sign_ins.run)
    answer = RedirectResponse(address, 303, _NOT_KEPT)
    set_cookie(answer, sign_in, PENDING, kept, LIFE_S)
    return answer


@router.get("/callback")
async def callback(request: Request, services: CurrentServices, sign_in: CurrentSignIn) -> Response:
    """Where the provider sends the browser back to."""
    if len(request.url.query) > _QUERY_BYTES:
        raise InvalidRequest(f"the query has more than {_QUERY_BYTES} characters: begin again")
    kept = cookie_in(request, sign_in, PENDING)
    run = services.threads.sign_ins.run
    goal, text = await sign_in.finish(dict(request.query_params), kept, run)
    if goal.challenge:
        answer = _for_program(goal, text)
    else:
        answer = RedirectResponse(goal.page, 303, _NOT_KEPT)
        set_cookie(answer, sign_in, SESSION, text, sign_in.lives.session_s)
    set_cookie(answer, sign_in, PENDING, "", 0)
    return answer


@router.post("/logout")
async def logout(request: Request, services: CurrentServices, sign_in: CurrentSignIn) -> Response:
    """End the browser's session. A page of another site cannot: its request has no cookie."""
    text = cookie_in(request, sign_in, SESSION)
    if text is not None:
        await sign_in.end(text, services.threads.sign_ins.run)
    answer = RedirectResponse("/", 303, _NOT_KEPT)
    set_cookie(answer, sign_in, SESSION, "", 0)
    return answer


@router.get("/session")
async def session(request: Request, services: CurrentServices, sign_in: CurrentSignIn) -> Document:
    """Who is signed in in this browser, and where they are a member."""
    text = cookie_in(request, sign_in, SESSION) or ""
    found = await sign_in.session(text, services.threads.sign_ins.run)
    user = found.user
    return {
        "object": "session",
        "user": {"id": user.id, "name": user.name, "email": user.email, "role": user.role},
        "projects": [{"id": member.owner, "role": member.role} for member in found.members],
        "expires_at": found.expires_at,
    }


@router.post("/token")
async def token(
    body: CodeRedemption, services: CurrentServices, sign_in: CurrentSignIn
) -> Document:
    """A program's key, for the code of its sign-in."""
    user, key, value = await services.threads.sign_ins.run(
        sign_in.key,
        body.code,
        body.code_verifier,
        name=body.name,
        owner=body.owner,
        admin=body.admin,
        life_s=body.expires_in_seconds,
    )
    return {
        "object": "sign_in.key",
        "id": key.id,
        "value": value,
        "owner": key.owner,
        "admin": key.kind == "admin",
        "scopes": list(key.scopes),
        "expires_at": key.expires_at,
        "user": {"id": user.id, "name": user.name, "email": user.email},
    }


@router.post("/revoke")
async def revoke(request: Request, services: CurrentServices, sign_in: CurrentSignIn) -> Document:
    """Refuse the key that this request comes with from now on."""
    principal = await _principal_of(request, services)
    if principal.key is None:
        raise InvalidRequest("the server's own key cannot be revoked: start it with another")
    act_as(actor_of(principal, request.scope))
    await services.threads.sign_ins.run(sign_in.give_back, principal)
    return {"id": principal.key, "object": "sign_in.key.deleted", "deleted": True}


async def _principal_of(request: Request, services: Services) -> Principal:
    header = request.headers.get("authorization")
    if header is None:
        raise Unauthorized("the request has no API key: send the one to revoke")
    return await services.keys.principal(header, services.threads.keys.run)


def _other_name(request: Request, public_url: str) -> str:
    """The same page by the name that the provider sends the browser back to; empty if it is that
    one. `localhost` and 127.0.0.1 do not share cookies. A proxy's names are its own affair."""
    here = urlsplit(public_url)
    same = request.url.netloc.lower() == here.netloc.lower()
    if same or not is_this_machine(here.hostname or ""):
        return ""
    query = f"?{request.url.query}" if request.url.query else ""
    return f"{public_url}{request.url.path}{query}"


def _for_program(goal: Goal, code: str) -> Response:
    """Hand the code to the program that listens on the browser's machine, or show it."""
    if goal.port == 0:
        return PlainTextResponse(f"{_CODE_PAGE}{code}\n", headers=_NOT_KEPT)
    query = urlencode({"code": code, "state": goal.program_state})
    return RedirectResponse(f"http://127.0.0.1:{goal.port}/?{query}", 303, _NOT_KEPT)


def _own_page(path: str) -> str:
    """A page of this server; another's would make the sign-in a way to lead people anywhere."""
    parts = urlsplit(path) if path.isascii() and path.isprintable() else None
    ours = parts is not None and not parts.scheme and not parts.netloc and "\\" not in path
    if not ours or not path.startswith("/") or path.startswith("//"):
        raise InvalidRequest("next is no page of this server: begin it with one /", param="next")
    if len(path) > _LONGEST_PAGE:
        raise InvalidRequest(f"next has more than {_LONGEST_PAGE} characters", param="next")
    return path
