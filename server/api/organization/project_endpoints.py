"""/v1/organization/projects: the owners."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.app_services import CurrentPrincipal, CurrentServices, Services
from server.api.jobs.job_documents import Document, page_document
from server.api.organization.access import (
    Label,
    Limit,
    ManagedProject,
    ServerAdmin,
    check_server_admin,
)
from server.api.organization.limit_fields import ProjectLimits, limits_document
from server.api.reference.answer_model import answers
from server.api.reference.organization_answers import Project, ProjectDeletion, ProjectPage
from server.api.reference.parameters import After
from server.api.threads import DatabaseRoute
from server.api.wire import Null, WireModel, only_known_query
from server.db.owner_limits import Limits
from server.tenancy.deletions import Deletion
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

    name: Label = Field(description="What people call it.", examples=["team-a"])
    external_key_id: Null = Field(None, description=_ELSEWHERE)
    geography: Null = Field(None, description=_ELSEWHERE)
    residency: Null = Field(None, description=_ELSEWHERE)


class ProjectChange(WireModel):
    """What changes of a project."""

    name: Label | None = Field(None, description="What people call it. The id stays.")
    external_key_id: Null = Field(None, description=_ELSEWHERE)
    geography: Null = Field(None, description=_ELSEWHERE)
    limits: ProjectLimits | None = Field(None, description="What it may use.")


def _document(owner: Owner, limits: Limits) -> Document:
    return {
        "id": owner.id,
        "object": "organization.project",
        "name": owner.name,
        "status": owner.status,
        "created_at": owner.created_at,
        "archived_at": owner.archived_at,
        "limits": limits_document(limits),
    }


def _documents(services: Services, owners: Sequence[Owner]) -> list[Document]:
    every = services.tenants.limits.of_all([owner.id for owner in owners])
    return [_document(owner, every[owner.id]) for owner in owners]


def _one(services: Services, owner: Owner) -> Document:
    return _documents(services, [owner])[0]


@router.get("", responses=answers(ProjectPage))
def list_projects(
    services: CurrentServices,
    principal: CurrentPrincipal,
    after: After = None,
    limit: Limit = 20,
    include_archived: bool = Query(False, description="Archived ones too."),
    search: str = Query("", max_length=256, description="Only those whose id or name holds it."),
) -> Document:
    """The projects by id: all for the server's admin, else the caller's own."""
    if not principal.server_admin:
        owners, more = [] if after else [services.tenants.owners.get(principal.owner)], False
        return page_document(_documents(services, owners), more)
    found, more = services.tenants.owners.list(
        after=after, limit=limit, archived=include_archived, search=search
    )
    return page_document(_documents(services, found), more)


@router.post("", responses=answers(Project, fails=(409,)))
def create_project(body: ProjectCreation, services: CurrentServices, _: ServerAdmin) -> Document:
    """Make a project. Only for the server's admin."""
    return _one(services, services.tenants.owners.create(body.name))


@router.get("/{project_id}", responses=answers(Project, fails=(404,)))
def get_project(services: CurrentServices, project: ManagedProject) -> Document:
    """One project."""
    return _one(services, services.tenants.owners.get(project))


@router.post("/{project_id}", responses=answers(Project, fails=(404, 409)))
def change_project(
    body: ProjectChange,
    services: CurrentServices,
    principal: CurrentPrincipal,
    project: ManagedProject,
) -> Document:
    """Rename a project, or set what it may use, which every process holds within a second."""
    owners = services.tenants.owners
    if body.limits is not None:
        check_server_admin(principal)
    owner = owners.get(project) if body.name is None else owners.rename(project, body.name)
    if body.limits is not None and body.limits.sent:
        services.tenants.limits.change(project, body.limits.sent)
    return _one(services, owner)


@router.post("/{project_id}/archive", responses=answers(Project, fails=(404, 409)))
def archive_project(services: CurrentServices, _: ServerAdmin, project: ManagedProject) -> Document:
    """Refuse a project's keys from now on, cancel its jobs and end what it shares with others. Only
    for the server's admin; nothing is deleted."""
    archived = services.tenants.owners.archive(project)
    services.tenants.shares.refresh()
    while services.jobs.cancel_of_inactive_owners():
        pass
    return _one(services, archived)


@router.delete("/{project_id}", responses=answers(ProjectDeletion, fails=(404, 409)))
def delete_project(
    services: CurrentServices,
    _: ServerAdmin,
    project: ManagedProject,
    export: str | None = Query(
        None, description="Copy adapters and files to a new folder of this name before."
    ),
) -> Document:
    """Delete a project with everything of it. Only for the server's admin.

    Its keys are refused from now on, and the rest is removed in the background. `export` is a
    folder in the folder `exports` of the server's home.
    """
    begun = services.tenants.deletions.start(project, export)
    services.tenants.shares.refresh()
    return _deletion(services, begun)


@router.get("/{project_id}/deletion", responses=answers(ProjectDeletion, fails=(404,)))
def get_deletion(services: CurrentServices, _: ServerAdmin, project: ManagedProject) -> Document:
    """How far the deletion of a project is. Only for the server's admin."""
    return _deletion(services, services.tenants.deletions.get(project))


def _deletion(services: Services, deletion: Deletion) -> Document:
    jobs, files = services.jobs.count_of(deletion.owner), services.files.count_of(deletion.owner)
    return {
        "id": deletion.owner,
        "object": "organization.project.deletion",
        "deleted": deletion.done_at is not None,
        "step": deletion.step,
        "left": {
            "adapters": len(services.adapters.names(deletion.owner)),
            "files": files,
            "jobs": jobs,
        },
        "export": deletion.export,
        "requested_at": deletion.requested_at,
        "done_at": deletion.done_at,
    }
