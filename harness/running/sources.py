"""The version of a stage's code: a hash over its module and every module of this repository that it imports.

Imports are read from the syntax tree, so nothing is executed (and torch never loaded). Comments, blank
lines and docstrings do not count: a stage is run again only when its code says something else.
"""

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path

from encoder.runtime.config import ROOT, ConfigError

PACKAGES = ("encoder", "llava_bridge", "rae_bridge", "harness")


@functools.cache
def source_version(module: str) -> str:
    """Hex sha256 over the code of `module` and of all it imports from this repository, directly or not.

    Raises:
        ConfigError: there is no such module.
    """
    code = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _outside_file(name) if name == module and _package(name) not in PACKAGES else module_file(name)
        if path is not None and name not in code:
            code[name], imports = _read(name, path)
            pending += imports
            pending += [name[:i] for i, letter in enumerate(name) if letter == "."]  # parents run too
    if module not in code:
        raise ConfigError(f"no stage module '{module}'")
    return hashlib.sha256("\n".join(f"{name} {code[name]}" for name in sorted(code)).encode()).hexdigest()


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
