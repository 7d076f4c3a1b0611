"""The folders import one way, and torch stays where tensors are."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "clients" / "python"

# A part may import itself and parts on lower rows; parts of one row never meet.
ROWS = [
    {"server.__main__"},
    {"server.cli"},
    {"server.wiring"},
    {"server.app"},
    {"server.console"},
    {"server.api"},
    {"server.tenancy"},
    {"server.replicas"},
    {"server.interfaces"},
    {"server.scheduler"},
    {"server.engine", "server.training"},
    {"server.adapters"},
    {"server.bases"},
    {"server.jobs"},
    {"server.db"},
    {"server.refused_fields"},
    {
        "server.config",
        "server.control_characters",
        "server.errors",
        "server.kernels",
        "server.loop_progress",
        "server.metrics",
        "server.pulse",
        "server.supervisor",
    },
    {"server.option_values"},
    {"adapters_store"},
]
LEVEL = {part: row for row, parts in enumerate(ROWS) for part in parts}
SETTINGS_READERS = {"server.cli", "server.wiring", "server.config"}
TORCH_USERS = {
    "server.adapters",
    "server.bases",
    "server.cli",
    "server.engine",
    "server.kernels",
    "server.training",
    "server.wiring",
}
TORCH_IN_STORE = {
    "adapters_store.weights",
    "adapters_store.imported_bases",
    "adapters_store.peft.folder",
}


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
            module = node.module or ""
            if node.level:  # the client's folder has another name where it is installed alone
                assert path.parent == CLIENT and node.level == 1, f"{path} imports relatively"
                module = f"clients.python.{module}"
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
        and part_of(module) not in TORCH_USERS
        and module not in TORCH_IN_STORE
    }
    assert wrong == set()


@pytest.mark.parametrize(
    "module",
    ["server.app", "server.replicas.fleet", "server.__main__", "server.cli.running.idle_worker"],
)
def test_what_knows_no_tensors_starts_without_torch(module: str) -> None:
    """Nothing that it imports may import them either: together they take three seconds."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output.strip() == "[]"


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


def test_a_folder_is_seen_at_one_look() -> None:
    sizes = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > 15} == {}


def test_a_file_name_leads_to_one_place() -> None:
    names = Counter(path.name for path in modules().values() if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_cycles_between_modules() -> None:
    assert in_a_circle(module_edges()) == set(), "these modules import each other in a circle"


def test_parts_of_a_folder_import_one_way() -> None:
    """Within a folder, its modules and its subfolders (each as a whole) never form a circle."""
    packages = [name for name, path in modules().items() if path.name == "__init__.py"]
    wrong = {name: circle for name in packages if (circle := in_a_circle(edges_within(name)))}
    assert wrong == {}


@cache
def module_edges() -> dict[str, set[str]]:
    graph = {name: imports(path) for name, path in modules().items()}
    return {
        name: {other for other in graph if other != name and reaches(other, names)}
        for name, names in graph.items()
    }


def edges_within(package: str) -> dict[str, set[str]]:
    """What each direct child of a package imports of the other children."""

    def child(module: str) -> str | None:
        inner = module.removeprefix(f"{package}.")
        return inner.split(".")[0] if inner != module else None

    edges: dict[str, set[str]] = {}
    for module, others in module_edges().items():
        if (own := child(module)) is not None:
            found = {name for other in others if (name := child(other)) not in (None, own)}
            edges.setdefault(own, set()).update(name for name in found if name)
    return edges


def in_a_circle(edges: dict[str, set[str]]) -> set[str]:
    done: set[str] = set()
    while ready := {name for name in edges if name not in done and edges[name] <= done}:
        done |= ready
    return set(edges) - done


def reaches(module: str, names: set[str]) -> bool:
    """True when `names` import `module` itself or something defined in it."""
    return any(name == module or name.rpartition(".")[0] == module for name in names)
