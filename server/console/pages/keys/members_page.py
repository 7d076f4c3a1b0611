"""/console/keys/members: the people of an owner, and their roles."""

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, Response

from server.api.app_services import CurrentServices
from server.api.organization import member_endpoints
from server.console.organization.managed import MANAGERS, CurrentManaged, body_of
from server.console.page_route import PageRoute
from server.console.rendering import CurrentPage

router = APIRouter(prefix="/console/keys/members", route_class=PageRoute, dependencies=[*MANAGERS])

_PAGE = 50
_HERE = "/console/keys/members"

Role = Annotated[str, Form()]


@router.get("")
def members(
    page: CurrentPage, services: CurrentServices, managed: CurrentManaged, after: str = ""
) -> HTMLResponse:
    """The people, the first added first."""
    found, more = services.tenants.people.members(
        managed.owner, service=False, after=after or None, limit=_PAGE
    )
    following = found[-1].user.id if more else ""
    return page.show("members.html", managed=managed, members=found, more=following)


@router.post("")
def add(
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    email: Annotated[str, Form()] = "",
    role: Role = "member",
) -> Response:
    """Add a person by the email."""
    wanted = body_of(member_endpoints.Membership, email=email.strip(), role=role)
    member_endpoints.add_member(wanted, services, managed.owner)
    return page.go_to(managed.link(_HERE))


@router.post("/{user_id}")
def change(
    user_id: str,
    page: CurrentPage,
    services: CurrentServices,
    managed: CurrentManaged,
    role: Role = "",
) -> Response:
    """Change a person's role."""
    wanted = body_of(member_endpoints.MembershipChange, role=role)
    member_endpoints.change_member(user_id, wanted, services, managed.owner)
    return page.go_to(managed.link(_HERE))


@router.post("/{user_id}/remove")
def remove(
    user_id: str, page: CurrentPage, services: CurrentServices, managed: CurrentManaged
) -> Response:
    """Take a person out, with the keys."""
    member_endpoints.remove_member(user_id, services, managed.owner)
    return page.go_to(managed.link(_HERE))
