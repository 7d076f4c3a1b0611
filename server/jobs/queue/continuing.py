"""Training that goes on from an adapter: what it may be told. Knows headers, and no tensors."""

from collections.abc import Mapping

from adapters_store.manifest import Manifest
from server.errors import InvalidRequest
from server.jobs.queue.train_options import TrainOptions

_IMPORTED_BASES = "stored/v1"
_LORAS = ("lora", "asymmetric-lora")
_OPTIONS = ("trained", "basis", "sparsity", "d_initial")


def check_continuable(model: str, manifest: Manifest, base_fingerprint: str) -> None:
    """Raise InvalidRequest unless an adapter of this base and this build's methods can go on."""
    if manifest.base_fingerprint != base_fingerprint:
        raise InvalidRequest(
            f"adapter {model!r} is of another base ({manifest.base_name}): train it where that "
            "base is served",
            param="model",
        )
    if manifest.basis_spec == _IMPORTED_BASES or manifest.options.get("pairing"):
        raise InvalidRequest(
            f"adapter {model!r} was imported with random matrices of its own, which are served "
            "but not trained on: train a new adapter from the base",
            param="model",
        )


def inherited(model: str, manifest: Manifest, asked: Mapping[str, object]) -> dict[str, object]:
    """The options of a job that goes on from `model`: what it must keep, and what `asked` adds.

    Targets are not among them: a name may mean many paths, which only the base knows.

    Raises:
        InvalidRequest: an option contradicts the adapter; the text names both.
    """
    kept: dict[str, object] = {"method": manifest.method, "rank": manifest.rank}
    kept |= {name: manifest.options[name] for name in _OPTIONS if name in manifest.options}
    if manifest.method in _LORAS:
        kept["alpha"] = manifest.scale * manifest.rank
    told = {name: value for name, value in asked.items() if value not in (None, "auto")}
    for name, value in told.items():
        own = kept.get(name)
        if name in ("method", "rank", "alpha", *_OPTIONS) and not _same(value, own):
            has = f"has {own}" if own is not None else f"is of method {manifest.method!r}"
            raise InvalidRequest(
                f"{name}={value!r} contradicts {model}, which {has}: leave {name} out, or train "
                "from the base",
                param=name,
            )
    needed = {name: kept[name] for name in ("method", "rank", "trained") if name in kept}
    return {name: value for name, value in told.items() if name not in kept} | needed


def check_targets(model: str, manifest: Manifest, wanted: tuple[str, ...]) -> None:
    """Raise InvalidRequest unless `wanted`, as module paths, are the adapter's own."""
    if set(wanted) != set(manifest.targets):
        raise InvalidRequest(
            f"targets of {len(wanted)} linears, such as {wanted[0]}, contradict {model}, which has "
            f"{len(manifest.targets)}, such as {manifest.targets[0]}: leave targets out, or train "
            "from the base",
            param="targets",
        )


def adapter_options(manifest: Manifest, options: TrainOptions) -> dict[str, float | str]:
    """What the method is told, to make an adapter of the same kind."""
    told: dict[str, float | str] = {**manifest.options, "dropout": options.dropout or 0.0}
    if manifest.method in _LORAS:
        told["alpha"] = manifest.scale * manifest.rank
    return told


def _same(value: object, own: object) -> bool:
    try:
        return float(str(value)) == float(str(own))
    except ValueError:
        return str(value) == str(own)
