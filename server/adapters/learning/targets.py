"""Finds the linears that an adapter changes: from what people write to module paths."""

from collections.abc import Iterable, Sequence

from server.bases.model import BaseModel
from server.errors import InvalidRequest

_ATTENTION = ("attn", "attention")


def resolve_targets(base: BaseModel, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Module paths of `base`, sorted.

    Args:
        targets: "all-linear", "attention" (every linear of the attention blocks), or suffixes of
            module paths, such as `q_proj` or `layers.0.mlp.up_proj`.

    Raises:
        InvalidRequest: nothing, or a suffix that no linear of this base has.
    """
    if targets == "all-linear":
        return tuple(sorted(base.targets))
    if targets == "attention":
        paths = {path for path in base.targets if _in_attention(path)}
        if not paths:
            raise InvalidRequest(
                f"base {base.name!r} has no linear under a module named attention: "
                f"name them, such as {_names(base.targets)}",
                param="targets",
            )
        return tuple(sorted(paths))
    suffixes = [targets] if isinstance(targets, str) else targets
    return tuple(sorted({path for suffix in suffixes for path in _ending(base, suffix)}))


def _in_attention(path: str) -> bool:
    return any(mark in part for part in path.split(".") for mark in _ATTENTION)


def _ending(base: BaseModel, suffix: str) -> list[str]:
    paths = [path for path in base.targets if path == suffix or path.endswith(f".{suffix}")]
    if not paths:
        raise InvalidRequest(
            f"no linear of base {base.name!r} is named {suffix!r}: it has {_names(base.targets)}",
            param="targets",
        )
    return paths


def _names(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
