"""Every name between backticks in docstrings and documentation exists, so that none goes stale.

Nothing is imported: names are read from the syntax trees of our sources. What is checked:

- a path to one of our files or folders, and a bare `store.py`;
- a dotted name that begins with one of our packages or classes;
- CamelCase, snake_case and `main()`: code of ours must use the identifier or spell it in a string,
  or a YAML file in `docker/` must have it;
- `verandah COMMAND --option`, `python -m module --option`, `make TARGET`, `VERANDAH_VARIABLE`;
- "decision N": the page is there.

Shell text, dotted names of others and single lower-case words are not checked.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES, prose

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "adapters_store", "clients", "benchmarks", "tests", "tools")
WITH_DOCSTRINGS = ("server", "adapters_store", "clients", "benchmarks")
# Of PEFT, transformers and Starlette; no source of ours spells them out.
FOREIGN = {"Headers", "adapter_names", "generate_batch", "lora_ga"}
# Classes whose fields are command-line options and environment variables.
OPTION_SOURCES = ("server/config.py", "server/cli", "clients/python/hyperparameters.py")

TICKED = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|md|sh|toml|yaml)")
DOTTED = re.compile(r"([A-Za-z_]\w*)((?:\.\w+)+)(?:\(.*\))?")
IDENTIFIER = re.compile(r"(?:_*[a-z]\w*_\w+|[A-Z]\w*[a-z]\w*|\w+(?=\(\)$))(?:\(\))?")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
VARIABLE = re.compile(r"VERANDAH_(?:(?:TRAIN|CHAT|METHODS)_)?([A-Z_]+)")


@cache
def trees() -> dict[Path, ast.Module]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {file: ast.parse(file.read_text("utf-8")) for file in files if file != Path(__file__)}


@cache
def strings(path: Path, *, alone: bool) -> tuple[str, ...]:
    """A file's strings: those that stand alone, as docstrings do, or all others."""
    nodes = list(ast.walk(trees()[path]))
    notes = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = (node for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str)
    return tuple(str(node.value) for node in texts if (id(node) in notes) == alone)


@cache
def identifiers() -> set[str]:
    """Whatever code of ours, or a file of settings, names or spells out, apart from docstrings."""
    names = {*dir(builtins), *FOREIGN, *(path.stem for path in trees())}
    for settings in (ROOT / "docker").rglob("*.y*ml"):
        names.update(re.findall(r"\w+", settings.read_text("utf-8")))
    for path, tree in trees().items():
        for text in strings(path, alone=False):
            names.update(re.findall(r"\w+", text))
        for node in ast.walk(tree):
            for field in ("id", "attr", "arg", "name", "asname"):
                if isinstance(value := getattr(node, field, None), str):
                    names.update(value.split("."))
    return names


@cache
def options() -> set[str]:
    """Command-line options: written out in code, or made of the fields of settings."""
    known: set[str] = set()
    for path, tree in trees().items():
        known.update(name for text in strings(path, alone=False) for name in OPTION.findall(text))
        if str(path.relative_to(ROOT)).startswith(OPTION_SOURCES):
            fields = (node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
            known.update(ast.unparse(field).replace("_", "-") for field in fields)
    return known | {f"no-{name}" for name in known}


@cache
def commands() -> set[str]:
    (main,) = (
        node.value
        for node in trees()[ROOT / "server/__main__.py"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_COMMANDS"
    )
    return {"engine", *ast.literal_eval(main)}  # a server starts that one itself


@cache
def members(node: ast.AST) -> dict[str, ast.AST]:
    """Names that a module or a class defines, those of `self` included."""
    defined: dict[str, ast.AST] = {}
    for child in ast.walk(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined[child.name] = child
        elif isinstance(child, ast.Name | ast.Attribute) and isinstance(child.ctx, ast.Store):
            defined[child.id if isinstance(child, ast.Name) else child.attr] = child
        elif isinstance(child, ast.alias):
            defined[child.asname or child.name] = child
    return defined


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    by_name: dict[str, list[ast.ClassDef]] = {}
    for node in (node for tree in trees().values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            by_name.setdefault(node.name, []).append(node)
    return by_name


def has_member(name: str, member: str) -> bool:
    """Whether a class has the member; one that is not ours may have any."""
    ours = classes().get(name)
    return ours is None or any(
        member in members(node) or any(has_member(ast.unparse(b), member) for b in node.bases)
        for node in ours
    )


def module_has(dotted: str) -> bool:
    """Whether a module, or what the rest of the name says within it, exists."""
    path, names = ROOT, dotted.split(".")
    while names and ((path / names[0]).is_dir() or (path / f"{names[0]}.py").is_file()):
        path = path / names.pop(0)
    file = path.with_suffix(".py")
    inside: ast.AST | None = trees().get(file if file.is_file() else path / "__init__.py")
    for name in names:
        inside = members(inside).get(name) if inside is not None else None
    return inside is not None or not names


@cache
def file_names() -> set[str]:
    pages = {path.name for path in PAGES} | {path.name for path in trees()}
    return pages | {path.name for path in (ROOT / "docker").iterdir()} | {"pyproject.toml"}


def is_there(text: str, where: Path) -> bool:
    """Whether a path leads somewhere: from the root, from the page, or by its name alone."""
    return text in file_names() or any((base / text).exists() for base in (ROOT, where.parent))


def stale(token: str, where: Path) -> bool:
    words = [*token.split(), "", ""]
    if words[0] == "verandah" or token.startswith(("--", "python -m ")):
        if words[0] == "verandah" and words[1].isalpha() and words[1].islower():
            return words[1] not in commands() or not set(OPTION.findall(token)) <= options()
        module_is_there = not words[2].startswith(PACKAGES) or module_has(words[2])
        return not module_is_there or not set(OPTION.findall(token)) <= options()
    if words[0] == "make" and words[1]:
        return f"\n{words[1]}:" not in (ROOT / "Makefile").read_text()
    if match := VARIABLE.fullmatch(token):
        return match[1].lower().replace("_", "-") not in options()
    if PATH.fullmatch(token):
        ours = (ROOT / token.split("/")[0]).exists() or token.endswith((".py", ".md", ".sh"))
        return ours and not is_there(token, where)
    if (match := DOTTED.fullmatch(token)) and match[1] in PACKAGES:
        return not module_has(token.partition("(")[0])
    if match:
        return not has_member(match[1], match[2].split(".")[1])
    return bool(IDENTIFIER.fullmatch(token)) and token.removesuffix("()") not in identifiers()


def texts() -> Iterator[tuple[Path, str]]:
    yield from ((page, prose(page)) for page in PAGES)
    for path in trees():
        if path.relative_to(ROOT).parts[0] in WITH_DOCSTRINGS:
            yield from ((path, text) for text in strings(path, alone=True))


def test_names_between_backticks_exist() -> None:
    tokens = ((path, " ".join(t.split())) for path, text in texts() for t in TICKED.findall(text))
    wrong = [f"{path.relative_to(ROOT)}: {token}" for path, token in tokens if stale(token, path)]
    assert wrong == []


def test_decisions_that_are_mentioned_exist() -> None:
    pages = {int(page.name[:4]) for page in (ROOT / "docs/decisions").glob("0*.md")}
    wrong = [
        f"{path.relative_to(ROOT)}: decision {number}"
        for path in (*PAGES, *trees())
        for number in re.findall(r"[Dd]ecisions? (\d+)", path.read_text("utf-8"))
        if int(number) not in pages
    ]
    assert wrong == []


STALE = (
    "server/gone.py, server.app.gone, ServingLoop.gone, GoneClass, gone_function(), verandah gone, "
    "--gone-option, python -m benchmarks.gone, make gone, VERANDAH_GONE"
)


@pytest.mark.parametrize("token", STALE.split(", "))
def test_a_stale_name_is_noticed(token: str) -> None:
    assert stale(token, ROOT / "README.md")
