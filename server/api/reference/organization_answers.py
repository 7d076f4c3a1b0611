"""The answers about projects, users and keys, as the OpenAPI page tells them."""

from typing import Literal

from pydantic import Field

from server.api.reference.answer_model import AnswerModel

_KIND = "The kind of document."
_GONE = "Always true."


class _Page(AnswerModel):
    """What each page of a list has."""

    object: Literal["list"] = Field(description=_KIND)
    first_id: str | None = Field(description="The id of the first item.")
    last_id: str | None = Field(description="The id of the last item: send it as `after`.")
    has_more: bool = Field(description="There are more behind the last one.")


class _Deleted(AnswerModel):
    """What each thing that is gone has."""

    id: str = Field(description="Its id.")
    deleted: Literal[True] = Field(description=_GONE)


class Limits(AnswerModel):
    """What a project may use; 0: no limit."""

    requests_a_minute: int = Field(description="Model requests in a minute.")
    tokens_a_minute: int = Field(description="Tokens of prompts and answers in a minute.")
    requests_at_once: int = Field(description="Model requests that run at once.")
    adapters: int = Field(description="Adapters.")
    files: int = Field(description="Files.")
    stored_bytes: int = Field(description="Bytes of files and adapters together.")
    running_jobs: int = Field(description="Jobs that train at once. Others wait.")
    waiting_jobs: int = Field(description="Jobs that wait or are paused.")
    training_tokens_a_day: int = Field(description="Tokens that jobs train in a day.")
    weight: float = Field(description="Its share of the engine beside others.")


class RateLimit(AnswerModel):
    """A project's limit a minute; 0: none."""

    id: str = Field(description="Its id.", examples=["rl-base"])
    object: Literal["project.rate_limit"] = Field(description=_KIND)
    model: str = Field(description="The base model. Its adapters count too.", examples=["base"])
    max_requests_per_1_minute: int = Field(description="Model requests in a minute.")
    max_tokens_per_1_minute: int = Field(description="Tokens of prompts and answers.")


class RateLimitPage(_Page):
    """One page of a project's limits a minute."""

    data: list[RateLimit] = Field(description="The limits.")


class Project(AnswerModel):
    """A project: the owner of files, jobs and adapters."""

    id: str = Field(description="Its id.", examples=["team-a"])
    object: Literal["organization.project"] = Field(description=_KIND)
    name: str = Field(description="What people call it.", examples=["Team A"])
    status: Literal["active", "archived", "deleting", "deleted"] = Field(
        description="Keys of a project that is not `active` are refused."
    )
    created_at: int = Field(description="When it was made, in Unix seconds.")
    archived_at: int | None = Field(description="When it was archived. Null: it was not.")
    limits: Limits = Field(description="What it may use.")


class LeftOfProject(AnswerModel):
    """What a deletion has still to remove."""

    adapters: int = Field(description="How many adapters.")
    files: int = Field(description="How many files.")
    jobs: int = Field(description="How many jobs.")


class ProjectDeletion(AnswerModel):
    """How far the deletion of a project is."""

    id: str = Field(description="The project's id.", examples=["team-a"])
    object: Literal["organization.project.deletion"] = Field(description=_KIND)
    deleted: bool = Field(description="All is gone.")
    step: Literal["jobs", "export", "adapters", "files", "records", "done"] = Field(
        description="What is stopped, copied or removed now."
    )
    left: LeftOfProject = Field(description="What is still there.")
    export: str | None = Field(
        description="The folder in the home's `exports` with a copy. Null: none was asked for."
    )
    requested_at: int = Field(description="When it began, in Unix seconds.")
    done_at: int | None = Field(description="When it was done. Null: it is not.")


class ProjectPage(_Page):
    """One page of projects."""

    data: list[Project] = Field(description="The projects.")


class ProjectUser(AnswerModel):
    """A user of a project."""

    id: str = Field(description="The user's id.", examples=["user-5d41402abc4b2a76b9719d91"])
    object: Literal["organization.project.user"] = Field(description=_KIND)
    name: str = Field(description="What people call the user.", examples=["ann"])
    email: str | None = Field(description="The user's email.", examples=["ann@example.com"])
    role: Literal["owner", "member"] = Field(description="`owner` manages the project.")
    added_at: int = Field(description="When the user joined, in Unix seconds.")


class ProjectUserPage(_Page):
    """One page of a project's users."""

    data: list[ProjectUser] = Field(description="The users.")


class DeletedProjectUser(_Deleted):
    """A user who left a project."""

    object: Literal["organization.project.user.deleted"] = Field(description=_KIND)


class ServiceAccount(AnswerModel):
    """A program that uses a project."""

    id: str = Field(description="Its id.", examples=["svc_acct_5d41402abc4b2a76b9719d91"])
    object: Literal["organization.project.service_account"] = Field(description=_KIND)
    name: str = Field(description="What people call it.", examples=["nightly-job"])
    role: Literal["owner", "member"] = Field(description="`owner` may manage the project.")
    created_at: int = Field(description="When it was made, in Unix seconds.")


class NewServiceAccountKey(AnswerModel):
    """A new key of a service account, with its value."""

    id: str = Field(description="Its id.", examples=["key_7d793037a0760186574b0282"])
    object: Literal["organization.project.service_account.api_key"] = Field(description=_KIND)
    name: str = Field(description="What people call it.")
    value: str = Field(description="The key. It is shown only once.")
    created_at: int = Field(description="When it was made, in Unix seconds.")
    expires_at: int | None = Field(description="When it expires. Null: never.")


class NewServiceAccount(ServiceAccount):
    """A new service account, with its first key."""

    api_key: NewServiceAccountKey | None = Field(description="The key. Null: none was asked for.")


class ServiceAccountPage(_Page):
    """One page of service accounts."""

    data: list[ServiceAccount] = Field(description="The service accounts.")


class DeletedServiceAccount(_Deleted):
    """A service account that is gone."""

    object: Literal["organization.project.service_account.deleted"] = Field(description=_KIND)


class KeyUser(AnswerModel):
    """Whose a key is."""

    id: str = Field(description="The id.")
    name: str = Field(description="What people call them.")
    email: str = Field(default="", description="The email. Left out for a service account.")
    role: Literal["owner", "member"] = Field(description="The role in the project.")
    created_at: int = Field(description="When the key was made, in Unix seconds.")


class KeyOwner(AnswerModel):
    """Whose a key is: a user's, or a service account's."""

    type: Literal["user", "service_account"] = Field(description="Which of both it is.")
    user: KeyUser | None = Field(default=None, description="The user. Left out if it is none.")
    service_account: KeyUser | None = Field(
        default=None, description="The service account. Left out if it is none."
    )


class _Key(AnswerModel):
    """What each key has, without its value."""

    id: str = Field(description="Its id.", examples=["key_7d793037a0760186574b0282"])
    name: str = Field(description="What people call it.", examples=["laptop"])
    redacted_value: str = Field(description="How it begins.", examples=["vr-3fQz1b..."])
    created_at: int = Field(description="When it was made, in Unix seconds.")
    expires_at: int | None = Field(description="When it expires. Null: never.")
    last_used_at: int | None = Field(description="When it was last used, to about a minute.")


class ApiKeyDocument(_Key):
    """A key of a project, without its value."""

    object: Literal["organization.project.api_key"] = Field(description=_KIND)
    scopes: list[str] = Field(description="What it may do.", examples=[["models.use"]])
    created_by: str = Field(description="The user or key that made it.", examples=["server"])
    owner: KeyOwner = Field(description="Whose it is.")
    owner_project_access: Literal["active", "inactive"] = Field(
        description="`inactive`: the project is archived."
    )


class NewApiKey(ApiKeyDocument):
    """A new key of a project, with its value."""

    value: str = Field(description="The key. It is shown only once.")


class RotatedApiKey(NewApiKey):
    """A new key of a project, and the one that it replaces."""

    replaces: ApiKeyDocument = Field(description="The old key, which expires.")


class ApiKeyPage(_Page):
    """One page of a project's keys."""

    data: list[ApiKeyDocument] = Field(description="The keys.")


class DeletedApiKey(_Deleted):
    """A key that was revoked."""

    object: Literal["organization.project.api_key.deleted"] = Field(description=_KIND)


class AdminKeyOwner(AnswerModel):
    """Whose an admin key is: a program's, of the key's name."""

    type: Literal["service_account"] = Field(description="Always `service_account`.")
    object: Literal["organization.user"] = Field(description=_KIND)
    id: str = Field(description="The key's id.")
    name: str = Field(description="The key's name.")
    created_at: int = Field(description="When the key was made, in Unix seconds.")
    role: Literal["owner"] = Field(description="Always `owner`.")


class AdminKey(_Key):
    """A key of the server's admin, without its value."""

    object: Literal["organization.admin_api_key"] = Field(description=_KIND)
    owner: AdminKeyOwner = Field(description="Whose it is.")


class NewAdminKey(AdminKey):
    """A new admin key, with its value."""

    value: str = Field(description="The key. It is shown only once.")


class AdminKeyPage(_Page):
    """One page of admin keys."""

    data: list[AdminKey] = Field(description="The keys.")


class DeletedAdminKey(_Deleted):
    """An admin key that was revoked."""

    object: Literal["organization.admin_api_key.deleted"] = Field(description=_KIND)


class UserDocument(AnswerModel):
    """A person."""

    id: str = Field(description="The user's id.", examples=["user-5d41402abc4b2a76b9719d91"])
    object: Literal["organization.user"] = Field(description=_KIND)
    name: str = Field(description="What people call the user.", examples=["ann"])
    email: str | None = Field(description="The user's email.", examples=["ann@example.com"])
    role: Literal["owner", "reader"] = Field(description="The role in the server.")
    added_at: int = Field(description="When the user was added, in Unix seconds.")


class UserPage(_Page):
    """One page of users."""

    data: list[UserDocument] = Field(description="The users.")


class DeletedUser(_Deleted):
    """A user who is gone."""

    object: Literal["organization.user.deleted"] = Field(description=_KIND)


ORGANIZATION_ANSWERS = (
    *(Project, ProjectPage, ProjectDeletion, RateLimit, RateLimitPage),
    *(ProjectUser, ProjectUserPage, DeletedProjectUser),
    *(ServiceAccount, NewServiceAccount, NewServiceAccountKey, ServiceAccountPage),
    *(DeletedServiceAccount, ApiKeyDocument, NewApiKey, RotatedApiKey, ApiKeyPage, DeletedApiKey),
    *(AdminKey, NewAdminKey, AdminKeyPage, DeletedAdminKey),
    *(UserDocument, UserPage, DeletedUser),
)
