"""/v1/organization/projects: the owners."""

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentPrincipal, CurrentServices
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import Limit, ManagedProject, ServerAdmin
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import Project, ProjectPage
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Null, Text, WireModel, only_known_query
from server.tenancy.owners import Owner

router = APIRouter(
    prefix="/v1/organization/projects",
    tags=["organization"],
    dependencies=[Depends(only_known_query)],
    route_class=DatabaseRoute,
)

_ELSEWHERE = "Not supported: leave it out."


class ProjectCreation(WireModel):
    """A new project. Its id is the name in small letters, or a random one for other names."""

    name: Text = Field(description="What people call it.", examples=["team-a"])
    external_key_id: Null = Field(None, description=_ELSEWHERE)
    geography: Null = Field(None, description=_ELSEWHERE)
    residency: Null = Field(None, description=_ELSEWHERE)


class ProjectChange(WireModel):
    """What changes of a project."""

    name: Text | None = Field(None, description="What people call it. The id stays.")
    external_key_id: Null = Field(None, description=_ELSEWHERE)
    geography: Null = Field(None, description=_ELSEWHERE)


def _document(owner: Owner) -> Document:
    return {
        "id": owner.id,
        "object": "organization.project",
        "name": owner.name,
        "status": owner.status,
        "created_at": owner.created_at,
        "archived_at": owner.archived_at,
    }


@router.get("", responses=answers(ProjectPage))
def list_projects(
    services: CurrentServices,
    principal: CurrentPrincipal,
    after: After = None,
    limit: Limit = 20,
    include_archived: bool = Query(False, description="Archived ones too."),
) -> Document:
    """The projects by id: all for the server's admin, else the caller's own."""
    if not principal.server_admin:
        owners, more = [] if after else [services.tenants.owners.get(principal.owner)], False
        return page_document([_document(owner) for owner in owners], more)
    found, more = services.tenants.owners.list(after=after, limit=limit, archived=include_archived)
    return page_document([_document(owner) for owner in found], more)


@router.post("", responses=answers(Project, fails=(409,)))
def create_project(body: ProjectCreation, services: CurrentServices, _: ServerAdmin) -> Document:
    """Make a project. Only for the server's admin."""
    return _document(services.tenants.owners.create(body.name))


@router.get("/{project_id}", responses=answers(Project, fails=(404,)))
def get_project(services: CurrentServices, project: ManagedProject) -> Document:
    """One project."""
    return _document(services.tenants.owners.get(project))


@router.post("/{project_id}", responses=answers(Project, fails=(404, 409)))
def change_project(
    body: ProjectChange, services: CurrentServices, project: ManagedProject
) -> Document:
    """Rename a project."""
    owners = services.tenants.owners
    return _document(
        owners.get(project) if body.name is None else owners.rename(project, body.name)
    )


@router.post("/{project_id}/archive", responses=answers(Project, fails=(404, 409)))
def archive_project(services: CurrentServices, _: ServerAdmin, project: ManagedProject) -> Document:
    """Refuse a project's keys from now on. Only for the server's admin; nothing is deleted."""
    return _document(services.tenants.owners.archive(project))
