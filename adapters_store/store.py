"""Stores adapters in a folder: immutable versions, published whole or not at all.

    <root>/<owner>/<name>/<version>/adapter.safetensors
    <root>/<owner>/<name>/<version>/aside             exists if the bare name never means it
    <root>/<owner>/<name>/latest      two numbers: the version that the bare name means (0: none),
                                      and the highest ever issued; replacing it is the commit
    <root>/<owner>/.issued/<name>     the highest version of a name whose versions are all deleted
    <root>/.bases/                    matrices of imported adapters (see `imported_bases`)
    <root>/.staging, .trash           adapters that are being published, and being deleted
    <root>/.lock, .staging.lock       locked while names change, and while anything is being staged

Knows no server, and not what the tensors mean. The disk is the only truth. Any number of processes
may read and write at once. Readers take no lock: a name appears with its first version complete, a
version above the highest issued one is not there yet, and every change is one rename. Writers take
the lock (flock, freed by the system when a process dies) for the renames only. Everything is synced
to the disk before it becomes visible.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters_store import disk, version_numbers, weights
from adapters_store.imported_bases import ImportedBases
from adapters_store.manifest import AdapterRef, Manifest, StoredAdapter, check_name, is_name
from adapters_store.store_changes import StoreChanges
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound, StoreError

FILE_NAME = "adapter.safetensors"


class AdapterStore:
    """Adapters under `root`, a folder that is created if it is missing.

    `imported_bases` has the matrices that imported adapters read. Leftovers of crashes are removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._changes = StoreChanges(root)
        self.imported_bases = ImportedBases(root / ".bases")
        self.sweep()
        self._sweep_bases()

    def publish(
        self,
        owner: str,
        name: str,
        manifest: Manifest,
        tensors: weights.Tensors,
        basis: weights.Tensors | None = None,
        *,
        latest: bool = True,
        room: Callable[[int], contextlib.AbstractContextManager[None]] | None = None,
    ) -> AdapterRef:
        """Write the next version and make it the latest. It is on the disk when this returns.

        `basis` are the matrices that `manifest.basis_sha256` names, if it came with its own.
        With `latest` False the version stands aside: the bare name never comes to mean it. The
        version is of the adapter that is `spelled` differently, if there is one. `room` is entered
        with the file's bytes while the version appears. It may refuse it.

        Raises:
            InvalidName: `owner` or `name` may not be a folder's name.
            ValueError: no tensors, or one is not float32.
        """
        self._folder(owner, name)  # raises before anything is written
        with self._changes.staging_in_use():
            staged = self._changes.staged()
            try:
                staged.mkdir()
                weights.write(staged / FILE_NAME, manifest, tensors)
                if not latest:
                    version_numbers.put_aside(staged)
                disk.sync(staged)
                if basis is not None:
                    self.imported_bases.keep(basis)
                size = (staged / FILE_NAME).stat().st_size
                with (
                    self._changes.names_locked(),
                    room(size) if room else contextlib.nullcontext(),
                ):
                    return self._changes.commit(owner, self.spelled(owner, name), staged)
            finally:
                shutil.rmtree(staged, ignore_errors=True)  # gone already, unless something failed

    def spelled(self, owner: str, name: str) -> str:
        """The owner's adapter whose name is `name` or differs only in capital letters, which is
        the same adapter; `name` itself if there is none."""
        if self._folder(owner, name).exists():
            return name
        same = name.casefold()
        return next((one for one in self.names(owner) if one.casefold() == same), name)

    def resolve(self, owner: str, name: str, version: int | None = None) -> AdapterRef:
        """Find a version (None: the latest) without opening it. One small read.

        Raises:
            AdapterNotFound: no such owner, name or version.
            AdapterCorrupt: the adapter does not say what it has, or has lost the version's file.
            InvalidName: one of them cannot exist.
        """
        folder = self._folder(owner, name)
        pointer = version_numbers.read_pointer(folder)
        if pointer is None:
            self._check_root()
            raise AdapterNotFound(f"{owner!r} has no adapter {name!r}")
        if version is None and not pointer.latest:
            raise AdapterNotFound(
                f"adapter {name!r} has only checkpoints: name one as NAME@VERSION"
            )
        ref = AdapterRef(owner, name, pointer.latest if version is None else version)
        path = self.path(ref)
        if ref.version <= pointer.issued and os.path.exists(path):
            return ref
        if version_numbers.read_pointer(folder) != pointer:  # a version came or went just now
            return self.resolve(owner, name, version)
        if version is None or (version <= pointer.issued and path.parent.exists()):
            raise AdapterCorrupt(f"{path} is missing: restore it, or delete {ref}")
        raise AdapterNotFound(
            f"adapter {name!r} has no version {version}; the latest is "
            f"{pointer.latest or 'not there yet'}"
        )

    def open(self, ref: AdapterRef) -> StoredAdapter:
        """Read a version's header. Raises AdapterNotFound or AdapterCorrupt."""
        path = self.path(ref)
        with _readable(path, ref):
            header = weights.read_header(path)
        return StoredAdapter(ref, header.manifest, path, header.size_bytes, header.sha256)

    def read(self, ref: AdapterRef) -> weights.Content:
        """Read a version whole and verified.

        Raises:
            AdapterNotFound: no such version.
            AdapterCorrupt: naming the path, and the field or tensor at fault.
        """
        path = self.path(ref)
        with _readable(path, ref):
            return weights.read_content(path)

    def load(self, ref: AdapterRef) -> tuple[Manifest, weights.ReadTensors, str]:
        """`read`: manifest, tensors on the CPU, content hash."""
        content = self.read(ref)
        return content.header.manifest, content.tensors(), content.header.sha256

    def owners(self) -> list[str]:
        """Owners with at least one adapter, sorted."""
        return [each for each in _valid_names(self._root) if self.names(each)]

    def names(self, owner: str) -> list[str]:
        """The owner's adapters, sorted; empty for an unknown owner. One scan, no file opened."""
        names = _valid_names(self._root / check_name("owner", owner))
        if not names:
            self._check_root()
        return names

    def sizes(self, owner: str) -> dict[str, int]:
        """The bytes of each of the owner's adapters, all versions together, without matrices that
        it shares with others."""
        return {name: self._size(owner, name) for name in self.names(owner)}

    def _size(self, owner: str, name: str) -> int:
        paths = [self.path(AdapterRef(owner, name, it)) for it in self.versions(owner, name)]
        total = 0
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it was deleted, or is damaged
                total += path.stat().st_size
        return total

    def versions(self, owner: str, name: str) -> list[int]:
        """The versions that exist, ascending; empty for an unknown adapter."""
        folder = self._folder(owner, name)
        pointer = version_numbers.read_pointer(folder)
        return [] if pointer is None else version_numbers.versions_in(folder, pointer)

    def aside(self, owner: str, name: str) -> list[int]:
        """Those of `versions` that the bare name never means, ascending."""
        folder = self._folder(owner, name)
        return [v for v in self.versions(owner, name) if version_numbers.is_aside(folder / str(v))]

    def delete(self, owner: str, name: str, version: int | None = None) -> list[int]:
        """Remove one version, or (None) all; returns which. The numbers are not issued again.

        Whoever has the file open may read on; the latest falls back to the highest that is left
        and does not stand aside. All can be removed whatever is damaged, and on a full disk too.

        Raises:
            AdapterNotFound: there is no such adapter or version.
            AdapterCorrupt: a version's adapter does not say what it has.
        """
        with self._changes.staging_in_use(), self._changes.names_locked():
            folder = self._folder(owner, name)
            pointer = version_numbers.read_pointer(folder, or_folders=version is None)
            versions = [] if pointer is None else version_numbers.versions_in(folder, pointer)
            if pointer is None or version not in (None, *versions, pointer.latest):
                raise AdapterNotFound(f"{owner!r} has no adapter {name!r}, or not that version")
            removed = versions if version is None else [version]
            left = [v for v in versions if v not in removed]
            imported = any(self._reads_imported(AdapterRef(owner, name, v)) for v in removed)
            if left:
                self._changes.discard_version(folder, removed[0], pointer, left)
            else:
                self._changes.discard_name(folder, pointer.issued)
        self.sweep()
        if imported:
            self._sweep_bases()
        return removed

    def remove_owner(self, owner: str) -> None:
        """Remove the folder of an owner without adapters, with the numbers of deleted ones."""
        with self._changes.staging_in_use(), self._changes.names_locked():
            folder = self._root / check_name("owner", owner)
            if folder.exists() and not _valid_names(folder):
                self._changes.discard(folder)
        self.sweep()

    def path(self, ref: AdapterRef) -> Path:
        """Where the version's file is, if it exists."""
        return self._root / ref.owner / ref.name / str(ref.version) / FILE_NAME

    def sweep(self) -> None:
        """Remove what crashed publishers and deletions left behind, unless one is at work now."""
        self._changes.sweep()

    def _folder(self, owner: str, name: str) -> Path:
        """Where an adapter's versions are. Raises InvalidName: there cannot be such an adapter."""
        return self._root / check_name("owner", owner) / check_name("adapter", name)

    def _check_root(self) -> None:
        """Raise OSError if all adapters have vanished: that is not the same as having none."""
        os.stat(f"{self._root}/")

    def _reads_imported(self, ref: AdapterRef) -> bool:
        try:
            return self.open(ref).manifest.basis_sha256 in self.imported_bases.hashes()
        except StoreError:
            return False  # a damaged version must go as well; the next start looks again

    def _sweep_bases(self) -> None:
        """Remove imported matrices that no adapter reads, unless something is being published now.

        Reads every adapter's header, but only where matrices were imported.
        """
        with (
            contextlib.suppress(BlockingIOError, StoreError),  # a broken adapter may read any
            self._changes.nothing_staged(),
        ):
            refs = self._all() if self.imported_bases.hashes() else ()
            self.imported_bases.sweep({self.open(ref).manifest.basis_sha256 for ref in refs})

    def _all(self) -> Iterator[AdapterRef]:
        for owner in self.owners():
            for name in self.names(owner):
                for version in self.versions(owner, name):
                    yield AdapterRef(owner, name, version)


@contextlib.contextmanager
def _readable(path: Path, ref: AdapterRef) -> Iterator[None]:
    try:
        with disk.unreadable(path, f"or delete {ref}"):
            yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterNotFound(
            f"{ref.owner!r} has no adapter {ref}: it was deleted, or never published"
        ) from error


def _valid_names(folder: Path) -> list[str]:
    """Names of its folders, sorted, without what others have put there."""
    return [name for name in disk.names(folder) if is_name(name)]
