"""Fields of a new job that only the database or a name's rules can judge."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from adapters_store.manifest import check_name
from adapters_store.store_errors import InvalidName
from server.db.tables import FileRow
from server.errors import InvalidRequest
from server.jobs import rows


def require_file(session: Session, owner: str, file_id: str, param: str) -> None:
    """Raise InvalidRequest unless the owner has such a file, for training."""
    row = rows.find_held(session, FileRow, owner, file_id)  # a deletion must not cross us
    if row is None:
        raise InvalidRequest(f"there is no file {file_id!r}; upload it first", param=param)
    if row.purpose != "fine-tune":
        raise InvalidRequest(
            f"file {file_id!r} is for {row.purpose!r} and not for 'fine-tune'", param=param
        )


def check_suffix(suffix: str) -> None:
    """Raise InvalidRequest unless an adapter may be called so."""
    try:
        check_name("suffix", suffix)
    except InvalidName as error:
        raise InvalidRequest(str(error), param="suffix") from error


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The OpenAI API's limits: 16 pairs, keys of 64 characters, values of 512."""
    if len(metadata) > 16:
        raise InvalidRequest(f"{len(metadata)} pairs of metadata; at most 16", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512 or not key.isprintable():
            raise InvalidRequest(
                f"metadata {key[:64]!r} has more than 64 characters, or its value more than 512",
                param="metadata",
            )
    return dict(metadata)
