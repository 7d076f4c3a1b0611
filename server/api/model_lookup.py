"""Finds the model that a request names. Knows no endpoint."""

from adapters_store.manifest import AdapterRef, check_name, parse_adapter_id, split_owner
from adapters_store.outside_values import shown
from adapters_store.store_errors import AdapterNotFound, InvalidName
from server.api.app_services import Services
from server.errors import Forbidden, InvalidRequest, ModelNotFound
from server.interfaces import Tokenizer
from server.tenancy.visibility import Right, ShareTo, visible


def find_model(
    services: Services, owner: str, model_id: str, *, to: ShareTo = "use"
) -> AdapterRef | None:
    """The adapter version that an id names, or None for the base model. Reads the disk.

    Args:
        to: what `owner` wants to do with it. To copy is whatever gives away what is in it.

    Raises:
        ModelNotFound: neither. The base model never answers for an unknown adapter.
        Forbidden: another owner shares it to be used alone.
    """
    if model_id == services.base.id:
        return None
    try:
        of, name, version, right = parse_owned_id(services, owner, model_id)
        ref = services.adapters.resolve(of, name, version)
        if right != "own" and version in services.adapters.aside(of, name):
            raise AdapterNotFound(f"checkpoint {version} is not shared")
    except (AdapterNotFound, InvalidName) as error:
        raise unknown_model(services, model_id) from error
    if right == "use" and to == "copy":
        raise Forbidden(
            f"the adapter {shown(model_id)} is shared with you to use, not to copy: ask its owner "
            "to share it to copy"
        )
    return ref


def tokenizer_of(services: Services, adapter: AdapterRef | None) -> Tokenizer:
    """What writes the chats of an adapter as it was trained on them, or those of the base (None).
    Reads the adapter's header, where that matters.

    Raises:
        AdapterCorrupt: the header cannot be read.
    """
    bare = services.tokenizer.without_default_prompt()
    if adapter is None or bare is services.tokenizer:
        return services.tokenizer
    kept = services.adapters.open(adapter).manifest.default_prompt
    return services.tokenizer if kept else bare


def parse_owned_id(
    services: Services, owner: str, model_id: str
) -> tuple[str, str, int | None, Right]:
    """The owner, name and version that an id means for `owner`, and what it may do with that: NAME
    is one's own adapter, OWNER/NAME any that one may see.

    Raises:
        AdapterNotFound: `owner` may not see it, whether it exists or not.
        InvalidName: no adapter can have that id.
    """
    of, rest = split_owner(model_id)
    name, version = parse_adapter_id(rest)
    right = visible(owner, of or owner, name, services.tenants.shares)
    if right is None:
        raise AdapterNotFound(f"{owner!r} may not use adapters of {of!r}")
    return of or owner, name, version, right


def unknown_model(services: Services, model_id: str) -> ModelNotFound:
    """The error for an id that names nothing of the owner's."""
    return ModelNotFound(
        f"the model {shown(model_id)} does not exist or is not yours: use {services.base.id!r}, an "
        "adapter's NAME, or NAME@VERSION; GET /v1/models and `verandah adapters` list them"
    )


def check_new_name(services: Services, owner: str, name: str, param: str) -> None:
    """Refuse a name under which no request could reach a new adapter. Every way in calls it.

    Raises:
        InvalidRequest: `param` names the field.
        AdapterCorrupt: the adapter of that name has lost its pointer, so no version can follow.
    """
    try:
        check_name(param, name)
        names = services.adapters.names(owner)
        taken = services.adapters.versions(owner, name)
    except InvalidName as error:
        raise InvalidRequest(str(error), param=param) from error
    if name.casefold() == services.base.id.casefold():
        raise InvalidRequest(
            f"{param} {name!r} is the base model's id, so no request could reach the adapter: "
            f"choose another {param}",
            param=param,
        )
    same = name.casefold()
    like = next((one for one in names if one.casefold() == same), None)
    if name not in names and (like or taken):
        raise InvalidRequest(
            f"{param} {name!r} differs from the name of the adapter {like or name.lower()!r} only "
            f"in capital letters: use that name, or choose another {param}",
            param=param,
        )


def listed_id(services: Services, owner: str, ref: AdapterRef) -> str:
    """The id of an adapter in `owner`'s lists: its name, unless that means the base model. Another
    owner's is OWNER/NAME.

    An adapter may be older than the base's name, which is an option of the server.
    """
    if ref.owner != owner:
        return f"{ref.owner}/{ref.name}"
    return str(ref) if ref.name == services.base.id else ref.name


def ids_after(services: Services, owner: str, after: str | None, contains: str = "") -> list[str]:
    """The owner's adapters, and then those that others share with it, behind the last id of a page,
    which is as `listed_id` gives it. Only those that have `contains` in their id, in any case."""
    last = None if after is None else after.partition("@")[0]
    ids = [*services.tenants.shares.received(owner)]
    if last is not None and "/" in last:
        ids = [one for one in ids if one > last]
    else:
        own = services.adapters.names(owner)
        ids = [*(name for name in own if last is None or name > last), *ids]
    part = contains.casefold()
    return [one for one in ids if part in one.casefold()] if part else ids


def listed_ref(services: Services, owner: str, listed: str) -> AdapterRef:
    """The version that one of `ids_after` means now. Raises as the store's `resolve`."""
    of, name = split_owner(listed)
    return services.adapters.resolve(of or owner, name)


def find_adapter(
    services: Services,
    owner: str,
    adapter_id: str,
    param: str = "adapter",
    *,
    to: ShareTo = "use",
) -> AdapterRef:
    """The adapter version that an id names.

    Raises:
        ModelNotFound: there is none.
        Forbidden: as of `find_model`.
        InvalidRequest: the id is the base model's.
    """
    ref = find_model(services, owner, adapter_id, to=to)
    if ref is None:
        raise InvalidRequest(f"{adapter_id!r} is the base model, not an adapter", param=param)
    return ref
