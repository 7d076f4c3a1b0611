"""What can go wrong with adapters at rest.

StoreError
├── AdapterNotFound   no such adapter or version
├── AdapterCorrupt    a file that is not what its header says, or not an adapter at all
├── InvalidCheckpoint somebody else's adapter that cannot be taken over as it is
└── InvalidName       an owner, name or version that may not be a folder's name
"""


class StoreError(Exception):
    """Base of every error raised on purpose by the store."""


class AdapterNotFound(StoreError, LookupError):
    """No such adapter or version."""


class AdapterCorrupt(StoreError):
    """A file that is not what its header says."""


class InvalidCheckpoint(StoreError, ValueError):
    """Somebody else's adapter that cannot be taken over as it is."""


class InvalidName(StoreError, ValueError):
    """An owner, name or version that may not be a folder's name."""
