"""What transformers loads for a base model: a folder, or the id of a repository on the hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download

from server.bases.base_place import locate
from server.bases.gguf_files.gguf_cache import converted
from server.bases.short_names import SHORT_NAMES
from server.errors import UnsupportedModel


def loadable(source: str | Path) -> Path | str:
    """The folder or hub id of `source` (as in `locate`). A GGUF file is converted, once.

    Raises:
        UnsupportedModel: it cannot be found, fetched or converted.
    """
    place = locate(source)
    if isinstance(place, Path):
        return converted(place) if place.is_file() else place
    repository, colon, file = place.partition(":")
    return converted(_fetched(repository, file)) if colon else place


def label_of(source: str | Path) -> str:
    """The name of `source` for people."""
    if source in SHORT_NAMES:
        return str(source)
    place = locate(source)
    return place.name if isinstance(place, Path) else place


def _fetched(repository: str, file: str) -> Path:
    """The file of a hub repository, from the local copy or fetched."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub's client and the network raise whatever they raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UnsupportedModel(
            f"{file!r} cannot be fetched from hub repository {repository!r}: {reason[:200]}; check "
            "the names and the network, or give a local .gguf file"
        ) from error
