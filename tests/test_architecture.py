"""The one way of imports: which package and which wing may import which, and that no two files import each
other, nor name by a string what they may not import."""

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from encoder.runtime.config import ROOT

# What a package may import besides itself. The bridges never import each other.
PACKAGES = {
    "encoder": (),
    "llava_bridge": ("encoder",),
    "rae_bridge": ("encoder",),
    "harness": ("encoder", "llava_bridge", "rae_bridge"),
}

# What a wing may import of its own package besides itself: other wings, or single files.
WINGS = {
    "encoder.runtime": (),
    "encoder.data": ("encoder.runtime",),
    "encoder.metrics": ("encoder.runtime",),
    "encoder.models": ("encoder.runtime", "encoder.data.tokenizer", "encoder.metrics"),
    "encoder.training": ("encoder.runtime", "encoder.data", "encoder.metrics", "encoder.models"),
    "harness.metrics": ("harness.replica.mark",),
    "harness.own_data": (),
    "harness.paper": ("harness.replica.mark",),
    "harness.probe": (),
    "harness.replica": (),
    "harness.tasks": (),
    "harness.running": ("harness.config",),
    "harness.tables": ("harness.config", "harness.metrics", "harness.running"),
    "harness.report": ("harness.tables",),
    "harness.scene_eval": ("harness.metrics",),
    "harness.suites": (
        "harness.config",
        "harness.described",
        "harness.encoders",
        "harness.metrics",
        "harness.own_data",
        "harness.probe.config",
        "harness.running",
        "harness.scene_eval.config",
        "harness.sections",
        "harness.tables",
        "harness.trained",
    ),
    "llava_bridge.any_resolution": (
        "llava_bridge.config",
        "llava_bridge.over_tokens",
        "llava_bridge.pictures",
        "llava_bridge.tower",
    ),
    "rae_bridge.distillation": (
        "rae_bridge.codec",
        "rae_bridge.config",
        "rae_bridge.dit",
        "rae_bridge.flops",
        "rae_bridge.flow",
        "rae_bridge.flow_batch",
        "rae_bridge.generate",
        "rae_bridge.latents",
        "rae_bridge.sample",
        "rae_bridge.shapes",
        "rae_bridge.transition",
    ),
    "rae_bridge.text": (
        "rae_bridge.blocks",
        "rae_bridge.class_losses",
        "rae_bridge.codec",
        "rae_bridge.config",
        "rae_bridge.dit",
        "rae_bridge.flow",
        "rae_bridge.flow_batch",
        "rae_bridge.generate",
        "rae_bridge.held_out",
        "rae_bridge.latents",
        "rae_bridge.parts",
        "rae_bridge.run",
        "rae_bridge.sample",
        "rae_bridge.shapes",
        "rae_bridge.train",
        "rae_bridge.weights_folder",
    ),
    "llava_bridge.demo_llm": (
        "llava_bridge.batches",
        "llava_bridge.config",
        "llava_bridge.data",
        "llava_bridge.prompt",
    ),
}

# What a wing may import of the packages below its own, where that is not all of them.
BELOW = {
    "harness.metrics": ("encoder",),
    "harness.own_data": ("encoder",),
    "harness.paper": ("encoder.runtime",),
    "harness.probe": (
        "encoder",
        "llava_bridge.any_resolution.views",
        "llava_bridge.config",
        "llava_bridge.evaluate",
    ),
    "harness.replica": ("encoder.data.scenes", "encoder.runtime"),
    "harness.report": ("encoder",),
    "harness.running": (
        "encoder",
        "llava_bridge.config",
        "rae_bridge.config",
        "rae_bridge.distillation.flops",
        "rae_bridge.flops",
        "rae_bridge.shapes",
    ),
    "harness.scene_eval": (
        "encoder",
        "rae_bridge.codec",
        "rae_bridge.config",
        "rae_bridge.generate",
        "rae_bridge.parts",
        "rae_bridge.text",
    ),
    "harness.suites": (
        "encoder",
        "llava_bridge.benchmark_table",
        "llava_bridge.config",
        "llava_bridge.custom_tasks",
        "rae_bridge.config",
        "rae_bridge.distillation.config",
        "rae_bridge.text.config",
    ),
    "harness.tables": ("encoder", "llava_bridge.benchmark_table"),
    "harness.tasks": ("encoder", "llava_bridge"),
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the four packages by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


@cache
def import_graph() -> dict[str, frozenset[str]]:
    """Module -> the modules of this repository that it imports anywhere, also in functions and for types."""
    return {module: imports(module, path.read_text(), modules()) for module, path in modules().items()}


def imports(module: str, code: str, known: Mapping[str, object]) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return frozenset(found & known.keys())


def named_by_strings(code: str, known: Mapping[str, object]) -> frozenset[str]:
    """The modules that strings name: alone, as `module:Class`, or as `module:module:Class`."""
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    found = [re.fullmatch(r"(?:module:)?([\w.]+)(?::\w+)?", text) for text in texts if isinstance(text, str)]
    return frozenset(match[1] for match in found if match) & known.keys()


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def against_the_order(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """Each import that runs against the order of packages, or of the wings within one."""
    found = []
    for module, imported in graph.items():
        package = module.split(".")[0]
        wing = next((wing for wing in WINGS if is_in(module, wing)), None)
        for each in sorted(imported):
            if each.split(".")[0] != package:
                places = BELOW.get(wing, PACKAGES[package])
                is_allowed = any(is_in(each, place) for place in places)
            else:
                is_allowed = wing is None or any(is_in(each, place) for place in (wing, *WINGS[wing]))
            if not is_allowed:
                found.append(f"{module} must not import {each}")
    return found


def circle(graph: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Modules each of which imports the next one, the last the first; () where there are none."""
    finished: set[str] = set()

    def follow(module: str, above: tuple[str, ...]) -> tuple[str, ...]:
        if module in above:
            return above[above.index(module) :]
        if module in finished:
            return ()
        found = next(filter(None, (follow(each, (*above, module)) for each in sorted(graph[module]))), ())
        finished.add(module)
        return found

    return next(filter(None, (follow(module, ()) for module in sorted(graph))), ())


def test_packages_and_wings_import_one_way():
    assert against_the_order(import_graph()) == []
    for wing in WINGS | BELOW:
        assert wing in modules(), f"{wing} is gone: take it out of WINGS and BELOW"


def test_no_string_names_a_module_of_a_package_above():
    for module, path in modules().items():
        package = module.split(".")[0]
        for each in named_by_strings(path.read_text(), modules()):
            assert each.split(".")[0] in {package, *PACKAGES[package]}, f"{module} must not name {each}"


def test_no_two_files_import_each_other():
    assert circle(import_graph()) == ()


@pytest.mark.parametrize(
    "module, code",
    [
        ("encoder.frozen", "import llava_bridge.tower"),  # a package above
        ("rae_bridge.flow", "from llava_bridge import tower"),  # the other bridge
        ("encoder.runtime.stage", "from encoder.data.shards import read_samples"),  # a wing above
        ("encoder.models.vae", "def late():\n    from encoder.frozen import FrozenEncoder"),  # the floor
        ("harness.tables.latex", "from harness import report"),
        ("harness.metrics.fid", "import harness.config"),
        ("harness.replica.clip", "from encoder.data.shards import read_samples"),  # a reader of ours
        ("harness.paper.look", "from encoder import load_encoder"),
        ("harness.tables.latex", "from llava_bridge.answers import f1"),
        ("encoder.token_store", "if TYPE_CHECKING:\n    from harness.config import Preset"),
        ("encoder.training.step", "from encoder import load_encoder"),  # through the lazy attribute
    ],
)
def test_an_import_against_the_order_is_found(module, code):
    planted = import_graph() | {module: imports(module, code, modules())}
    assert [each for each in against_the_order(planted) if each.startswith(f"{module} ")]


@pytest.mark.parametrize("text", ["harness.run", "harness.metrics.lpips:Lpips", "module:harness.run:main"])
def test_a_module_that_a_string_names_is_found(text):
    known = dict.fromkeys(["harness.run", "harness.metrics.lpips"])
    assert len(named_by_strings(f"def f(network={text!r}): ...", known)) == 1
    assert not named_by_strings(f"def f():\n    '{text} writes it.'", known)


@pytest.mark.parametrize("where", ["if TYPE_CHECKING:", "def late():"])
def test_a_circle_is_found(where):
    code = f"{where}\n    from encoder.load import load_encoder"
    planted = import_graph() | {"encoder.frozen": imports("encoder.frozen", code, modules())}
    assert "encoder.frozen" in circle(planted)
    assert circle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a")}) == ("a", "b", "c")
    assert circle({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}) == ()


def test_every_wing_is_ordered_and_says_what_lives_there():
    folders = {module: path for module, path in modules().items() if path.name == "__init__.py"}
    for package in PACKAGES:
        assert package in folders
    for module, path in folders.items():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert text, f"{path} does not say what lives there"
        if module.count(".") == 1:
            assert module in WINGS, f"{module}: say in WINGS what it may import"
            assert "Imports" in text, f"{path} does not say what it may import"
