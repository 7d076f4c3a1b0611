"""Finds the model that a request names. Knows no endpoint."""

from adapters_store.manifest import AdapterRef, parse_adapter_id
from adapters_store.store_errors import AdapterNotFound, InvalidName
from server.api.app_services import Services
from server.errors import InvalidRequest, ModelNotFound


def find_model(services: Services, owner: str, model_id: str) -> AdapterRef | None:
    """The adapter version that an id names, or None for the base model. Reads the disk.

    Raises:
        ModelNotFound: neither. The base model never answers for an unknown adapter.
    """
    if model_id == services.base.id:
        return None
    try:
        return services.adapters.resolve(owner, *parse_adapter_id(model_id))
    except (AdapterNotFound, InvalidName) as error:
        raise ModelNotFound(
            f"the model {model_id!r} does not exist or is not yours: use {services.base.id!r}, an "
            "adapter's NAME, or NAME@VERSION; GET /v1/models and `verandah adapters` list them"
        ) from error


def find_adapter(
    services: Services, owner: str, adapter_id: str, param: str = "adapter"
) -> AdapterRef:
    """The adapter version that an id names.

    Raises:
        ModelNotFound: there is none.
        InvalidRequest: the id is the base model's.
    """
    ref = find_model(services, owner, adapter_id)
    if ref is None:
        raise InvalidRequest(f"{adapter_id!r} is the base model, not an adapter", param=param)
    return ref
