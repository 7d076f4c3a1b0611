"""The folders import one way, and torch stays where tensors are."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A part may import itself and parts on lower rows; parts of one row never meet.
ROWS = [
    {"server.__main__"},
    {"server.cli"},
    {"server.app"},
    {"server.api"},
    {"server.tenancy"},
    {"server.replicas"},
    {"server.scheduler"},
    {"server.engine", "server.training"},
    {"server.adapters"},
    {"server.bases"},
    {"server.jobs"},
    {"server.db"},
    {"server.config", "server.errors", "server.metrics", "server.pulse", "server.supervisor"},
    {"adapters_store"},
]
LEVEL = {part: row for row, parts in enumerate(ROWS) for part in parts}
SETTINGS_READERS = {"server.__main__", "server.cli", "server.app", "server.config"}
TORCH_USERS = {"server.engine", "server.training", "server.adapters", "server.bases"}
TORCH_IN_STORE = {"adapters_store.weights", "adapters_store.foreign", "adapters_store.peft.folder"}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("server", "adapters_store", "clients"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def part_of(module: str) -> str | None:
    names = module.split(".")
    if names[0] != "server":
        return names[0]
    return ".".join(names[:2]) if len(names) > 1 else None


@cache
def imports(path: Path) -> set[str]:
    """Full names imported anywhere in the file, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def ours(names: set[str]) -> set[str]:
    parts = {part_of(name) for name in names if name.split(".")[0] in ("server", "adapters_store")}
    return {part for part in parts if part is not None}


def test_imports_point_one_way() -> None:
    wrong = {name: said for name in modules() if (said := what_is_wrong_with_imports(name))}
    assert wrong == {}


def what_is_wrong_with_imports(module: str) -> str:
    part, parts = part_of(module), ours(imports(modules()[module]))
    if part is None:
        return f"only a docstring should be here, not imports of {parts}" if parts else ""
    if part == "clients":
        return f"imports {parts}; clients import nothing of ours" if parts else ""
    if part not in LEVEL:
        return f"belongs to no known part: add {part} to ROWS"
    higher = sorted(other for other in parts - {part} if LEVEL[other] <= LEVEL[part])
    return f"imports {higher}, not below {part}" if higher else ""


def test_torch_stays_with_the_tensors() -> None:
    wrong = {
        module
        for module, path in modules().items()
        if any(name.split(".")[0] == "torch" for name in imports(path))
        and part_of(module) not in TORCH_USERS | {"server.__main__", "server.cli"}
        and module not in TORCH_IN_STORE
    }
    assert wrong == set()


def test_only_the_wiring_reads_settings() -> None:
    wrong = {
        module
        for module, path in modules().items()
        if "server.config.Settings" in imports(path) and part_of(module) not in SETTINGS_READERS
    }
    assert wrong == set()


def test_files_stay_readable() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_cycles_between_modules() -> None:
    graph = {name: imports(path) for name, path in modules().items()}
    edges = {
        name: {other for other in graph if other != name and reaches(other, names)}
        for name, names in graph.items()
    }
    done: set[str] = set()
    while ready := {name for name in edges if name not in done and edges[name] <= done}:
        done |= ready
    assert set(edges) - done == set(), "these modules import each other in a circle"


def reaches(module: str, names: set[str]) -> bool:
    """True when `names` import `module` itself or something defined in it."""
    return any(name == module or name.rpartition(".")[0] == module for name in names)
