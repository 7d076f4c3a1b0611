"""Checks what a job may ask that continues from an adapter. Knows headers, and no tensors."""

from collections.abc import Mapping

from adapters_store.manifest import STORED_BASIS, Manifest
from adapters_store.outside_values import shown
from server.errors import InvalidRequest
from server.jobs.queue.method_spec import OPTIONS, MethodSpec, MethodSpecs, spec_named
from server.jobs.queue.train_options import TrainOptions


def check_continuable(model: str, manifest: Manifest, base_fingerprint: str) -> None:
    """Raise InvalidRequest unless an adapter of this base can be trained further."""
    if manifest.base_fingerprint != base_fingerprint:
        raise InvalidRequest(
            f"adapter {model!r} is of another base ({manifest.base_name}): train it where that "
            "base is served",
            param="model",
        )
    if manifest.basis_spec == STORED_BASIS:
        raise InvalidRequest(
            f"adapter {model!r} was imported with random matrices of its own, which are served "
            "but not trained on: train a new adapter from the base",
            param="model",
        )


def inherited(
    model: str, manifest: Manifest, options: Mapping[str, object], specs: MethodSpecs
) -> dict[str, object]:
    """The options of a job that continues from `model`: the adapter's, and the job's `options`.

    Targets are not compared: a name may mean many paths, which only the base knows.

    Raises:
        InvalidRequest: an option contradicts the adapter, and the text names both; or this build
            does not have the method.
    """
    own: dict[str, object] = {"method": manifest.method, "rank": manifest.rank}
    own |= method_options(manifest, spec_named(specs, manifest.method))
    named = {name: value for name, value in options.items() if value not in (None, "auto")}
    for name, value in named.items():
        if name in ("method", "rank", *OPTIONS) and not _equal(value, own.get(name)):
            has = f"has {own[name]}" if name in own else f"is of method {manifest.method!r}"
            raise InvalidRequest(
                f"{name}={shown(value)} contradicts {model}, which {has}: leave {name} out, or "
                "train from the base",
                param=name,
            )
    needed = {name: own[name] for name in ("method", "rank", "trained") if name in own}
    return {name: value for name, value in named.items() if name not in own} | needed


def check_targets(model: str, manifest: Manifest, targets: tuple[str, ...]) -> None:
    """Raise InvalidRequest unless `targets`, as module paths, are the adapter's own."""
    own = manifest.targets
    if set(targets) != set(own):
        raise InvalidRequest(
            f"targets of {len(targets)} linears, such as {targets[0]}, contradict {model}, which "
            f"has {len(own)}, such as {own[0]}: leave targets out, or train from the base",
            param="targets",
        )


def adapter_options(
    manifest: Manifest, options: TrainOptions, spec: MethodSpec
) -> dict[str, float | str]:
    """The options with which the method makes an adapter of the same kind."""
    dropout = {"dropout": options.dropout or 0.0}
    return {**manifest.options, **dropout, **method_options(manifest, spec)}


def method_options(manifest: Manifest, spec: MethodSpec) -> dict[str, float | str]:
    """Those of the adapter that the method has and that a job may name."""
    names = [name for name in OPTIONS if spec.has(name) and name in manifest.options]
    options: dict[str, float | str] = {name: manifest.options[name] for name in names}
    if spec.has("alpha"):
        options["alpha"] = manifest.scale * manifest.rank
    return options


def _equal(value: object, own: object) -> bool:
    try:
        return float(str(value)) == float(str(own))
    except ValueError:
        return str(value) == str(own)
