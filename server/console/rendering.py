"""Makes pages from templates. Knows no page.

Jinja escapes whatever a template shows; no template marks anything as safe.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.api.app_services import CurrentServices, Services
from server.api.error_body import ErrorBody
from server.api.gate import check_scope
from server.api.sign_in.session_cookie import SESSION, cookie_in
from server.tenancy.principal import Principal, Scope

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
_TEMPLATES: Final = HERE / "templates"
_UNITS: Final = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Section:
    """A place in the navigation, for whoever has one of these scopes (none: for all)."""

    title: str
    path: str
    scopes: tuple[Scope, ...] = ()
    admin: bool = False


SECTIONS: Final = (
    Section("Home", "/console"),
    Section("Data", "/console/data", ("files",)),
    Section("Jobs", "/console/jobs", ("jobs",)),
    Section("Compare", "/console/compare", ("models.use",)),
    Section("Adapters", "/console/adapters", ("adapters.read",)),
    Section("Usage", "/console/usage", ("usage.read",)),
    Section("Keys", "/console/keys", ("admin",)),
    Section("Admin", "/console/admin", admin=True),
)


class Templates:
    """The templates and their filters. `address` gives a static file's URL, which changes with its
    bytes, so browsers keep it for ever."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "size": size,
            "count": count,
            "ago": ago,
            "moment": moment,
            "span": span,
            "as_json": as_json,
        }
        self._environment.globals["address"] = self.address
        self._addresses: dict[str, str] = {}

    def render(self, template: str, **values: object) -> str:
        return self._environment.get_template(template).render(**values)

    def address(self, name: str) -> str:
        if name not in self._addresses:
            digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
            self._addresses[name] = f"/console/static/{name}?v={digest}"
        return self._addresses[name]


def size(number: float) -> str:
    """Bytes, as people read them: 1,234,567 are 1.2 MB."""
    unit = 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    digits = 0 if unit == 0 or number >= 99.95 else 1
    return f"{number:,.{digits}f} {_UNITS[unit]}"


def count(number: float) -> str:
    """A whole number with commas; from 100,000 on it is short: 1.2 M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if number >= factor:
            return f"{number / (1e3 if letter == 'k' else factor):,.1f} {letter}"
    return f"{number:,.0f}"


def span(seconds: float) -> str:
    """A time that something takes: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for big, large, small, little in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= big:
            return f"{whole // big} {large} {whole % big // small} {little}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def ago(at: float | None) -> str:
    """How long ago a Unix time was, or in how long it is."""
    if at is None:
        return "never"
    seconds = time.time() - at
    if seconds <= -5:
        return f"in {span(-seconds).split(' ', 2)[0]} {_unit(-seconds)}"
    return "just now" if seconds < 5 else f"{span(seconds).split(' ', 2)[0]} {_unit(seconds)} ago"


def _unit(seconds: float) -> str:
    return span(seconds).split(" ")[1]


def moment(at: float | None) -> str:
    """A Unix time as a date, in UTC; the page's script shows it in the browser's own zone."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def as_json(value: object) -> str:
    """For a `data-` attribute, which the template escapes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class Page:
    """One request for a page or a part of one. `principal` is None before the sign-in."""

    request: Request
    services: Services
    templates: Templates
    principal: Principal | None

    @property
    def owner(self) -> str:
        return self.known.owner

    @property
    def known(self) -> Principal:
        """Who asks. `server.console.console_gate` let nobody else in."""
        assert self.principal is not None
        return self.principal

    @cached_property
    def partial(self) -> bool:
        """Whether the script of a page asks for a part of it."""
        headers = self.request.headers
        return headers.get("hx-request") == "true" and "hx-boosted" not in headers

    @property
    def may_switch(self) -> bool:
        """Whether a person works here who came from the sign-in provider."""
        provider = self.services.signing_in
        if provider is None or self.known.user is None:
            return False
        return cookie_in(self.request, provider, SESSION) is not None

    def show(self, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
        """A page, or with a template that begins with `_` a part of one."""
        shown = self.templates.render(
            template,
            page=self,
            base=self.services.base,
            sections=self.sections(),
            path=self.request.scope["path"],
            **values,
        )
        return HTMLResponse(shown, status)

    def sections(self) -> Sequence[Section]:
        """Where this principal may go."""
        who = self.principal
        if who is None:
            return ()
        return [
            it for it in SECTIONS if self.may(*it.scopes) and (not it.admin or who.server_admin)
        ]

    def may(self, *scopes: Scope) -> bool:
        """Whether this principal has one of these scopes; templates hide what it may not do."""
        return not scopes or any(map(self.known.may, scopes))

    def failure(self, error: ErrorBody) -> Response:
        """An error as a page; within a page as a notice at its top."""
        if not self.partial:
            response = self.show("error.html", status=error.status, error=error)
        else:
            response = self.show("_notice.html", status=error.status, error=error)
            response.headers["hx-retarget"] = "#notices"
            response.headers["hx-reswap"] = "beforeend"
        return response

    def go_to(self, path: str) -> Response:
        """Lead the browser to another page after a form."""
        if self.partial:
            here = urlsplit(self.request.headers.get("hx-current-url", "")).path
            same = here != "" and urlsplit(path).path == here
            # Another fragment of the same page would not load it again.
            headers = {"hx-refresh": "true"} if same else {"hx-redirect": path}
            return Response(status_code=204, headers=headers)
        return Response(status_code=303, headers={"location": path})


def page_of(request: Request, services: Services) -> Page:
    """The page that a request is for."""
    templates = cast(Templates, request.app.state.templates)
    return Page(request, services, templates, request.scope.get("verandah.principal"))


async def _page(request: Request, services: CurrentServices) -> Page:
    return page_of(request, services)


CurrentPage = Annotated[Page, Depends(_page)]


def needs(*scopes: Scope) -> Callable[[CurrentPage], object]:
    """A dependency: the browser's key has one of these scopes, as the API's table asks for it.

    Raises:
        MissingScope: it has none of them.
    """

    async def check(page: CurrentPage) -> None:
        check_scope(page.known, scopes)

    return check
