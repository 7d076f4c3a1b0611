"""Triton's interpreter, where there is no CUDA device: it is chosen before triton is imported.

No looking for garbage among all that the tests import, which stays until the end. And nothing of
the user's: Porch is the base of whatever names none, and the cache is an empty folder. Bases are in
float32 unless a test says otherwise: what `auto` is depends on the machine.
"""

import gc
import importlib.util
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.db.postgres import postgres_url

__all__ = ["postgres_url"]

os.environ["VERANDAH_DTYPE"] = "float32"


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: object, scope: interpreter._LangPatchScope) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 holds a scalar as an array of one, which numpy 2.4 no longer makes an int:
        # without this, no kernel can have a loop over what it loaded.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


# The device files are asked, not torch: most tests never import it, and start at once.
if importlib.util.find_spec("triton") and not list(Path("/dev").glob("nvidia[0-9]*")):
    _interpret()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the processes of pytest-xdist inherit it
        cache = tempfile.TemporaryDirectory(prefix="verandah-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ |= {"XDG_CACHE_HOME": cache.name, "VERANDAH_MODEL": "porch"}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several processes: slow tests first, or one is left with them when others are done."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
