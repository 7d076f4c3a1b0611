"""Which frozen matrices an adapter reads. Knows no tensors."""

from dataclasses import dataclass
from typing import Final

from adapters_store.manifest import STORED_BASIS, Manifest

NO_BASIS: Final = "none"
PEFT_PAIRING: Final = "peft"


@dataclass(frozen=True)
class BasisId:
    """Adapters with equal ids read the same matrices, of which memory holds one copy.

    `spec` is a seeded spec (`server.bases.seeded_matrices`), `STORED_BASIS` for imported matrices,
    which are kept by their hash, or `NO_BASIS` for a method that reads none. `per_layer`: each
    linear of the base reads streams of its own. `pairing` is RandLoRA's: which column of B meets
    which row of A.
    """

    spec: str
    seed: int = 0
    sha256: str = ""
    per_layer: bool = False
    pairing: str = ""

    @classmethod
    def of(cls, manifest: Manifest) -> "BasisId":
        """The basis of an adapter at rest."""
        return cls(
            spec=manifest.basis_spec,
            seed=manifest.seed,
            # A seeded basis is its seed; the hash proves it and does not name it.
            sha256=manifest.basis_sha256 if manifest.basis_spec == STORED_BASIS else "",
            per_layer=manifest.options.get("basis") == "per-layer",
            pairing=manifest.options.get("pairing", ""),
        )
