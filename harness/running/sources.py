"""The version of a stage's code: a hash over its module and every module of this repository that it imports.

Imports are read from the syntax tree, so nothing is executed (and torch never loaded). Comments, blank
lines and docstrings do not count: a stage is run again only when its code says something else.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from pathlib import Path

from encoder.runtime.config import ROOT, ConfigError

PACKAGES = ("encoder", "llava_bridge", "rae_bridge", "harness")


@functools.cache
def source_version(module: str) -> str:
    """Hex sha256 over the code of `module` and of all it imports from this repository, directly or not.

    Raises:
        ConfigError: there is no such module.
    """
    code = _code_of(module)
    if module not in code:
        raise ConfigError(f"no stage module '{module}'")
    lines = [f"{name} {code[name][0]}" for name in sorted(code)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def imported_packages(module: str) -> set[str]:
    """The first names of all that this code imports, others' packages among them."""
    return {_package(name) for _, imports in _code_of(module).values() for name in imports}


def own_files(module: str) -> tuple[Path, ...]:
    """The files of a module of one's own, and of all that it imports, directly or not, from outside of this
    repository's packages and of what is installed: found on the path, without running them."""
    return _files_of([module])


def own_imports(file: Path) -> tuple[Path, ...]:
    """The same files, of all that a Python file of one's own imports.

    Raises:
        ValueError: it is not Python.
    """
    try:
        return _files_of(_read(file.stem, file)[1])
    except SyntaxError as error:
        raise ValueError(f"{error.filename} is not Python: line {error.lineno}: {error.msg}") from None


def _files_of(modules: list[str]) -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    pending = [*modules]
    while pending:
        name = pending.pop()
        if name not in found and (path := _own_file(name)) is not None:
            found[name] = path
            pending += [*_read(name, path)[1], *_parents(name)]
    return tuple(sorted(set(found.values())))


def _code_of(module: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> the hash of its code and what it imports, of `module` and all that it imports from here."""
    code: dict[str, tuple[str, list[str]]] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _outside_file(name) if name == module and _package(name) not in PACKAGES else module_file(name)
        if path is not None and name not in code:
            code[name] = _read(name, path)
            pending += [*code[name][1], *_parents(name)]
    return code


def _parents(name: str) -> list[str]:
    """The packages that a dotted name lies in: importing it runs them too."""
    return [name[:i] for i, letter in enumerate(name) if letter == "."]


def _own_file(name: str) -> Path | None:
    if _package(name) in PACKAGES:
        return None
    stems = [place.joinpath(*name.split(".")) for place in _own_places(tuple(sys.path))]
    files = [path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py")]
    return next((path for path in files if path.is_file()), None)


@functools.cache
def _own_places(path: tuple[str, ...]) -> list[Path]:
    """The folders on the path that hold neither Python's own modules nor installed packages."""
    installed = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    places = [Path(place or ".").resolve() for place in path]
    return [place for place in places if not installed & {place, *place.parents} and place.is_dir()]


@functools.cache
def _read(name: str, path: Path) -> tuple[str, list[str]]:
    """The hash of a module's code, and the names that it imports."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    imports = _imports(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imports


def module_file(name: str) -> Path | None:
    """The file of a dotted module name of this repository's packages, or None for any other name."""
    if _package(name) not in PACKAGES:
        return None
    stem = ROOT.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _package(name: str) -> str:
    return name.split(".")[0]


def _outside_file(name: str) -> Path | None:
    """A stage's module that is not of this repository: found where Python finds it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


def _imports(tree: ast.Module, package: str) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return names


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
