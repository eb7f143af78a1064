"""Where one number comes from: a popover that opens at a click, without script."""

import hashlib
from collections.abc import Mapping

from harness.report.markup import Markup, element, join
from harness.tables.results_folder import SavedSuite, result_files

_DIRECTIONS = {True: "higher is better", False: "lower is better", None: "neither way is better"}


def popover(suite: SavedSuite, name: str, metric: Mapping) -> Markup:
    """All that a result file says; of a number of several seeds, also the others, each one click away."""
    content = suite.result(name)
    identity = identity_of(suite, name)
    facts = _seeds(suite, name, metric) | {
        "value": _number(content["value"], content["unit"]),
        "standard error": _number(content["stderr"], content["unit"]),
        "direction": _DIRECTIONS[content["higher_is_better"]],
        "count": content["num_samples"],
        "seed": content["seed"],
        "stage": element("code", content["stage"]),
        "folder": element("code", content["folder"]),
        "config hash": _hash(content["config_hash"]),
        "checkpoint hash": _hash(content["checkpoint_hash"]),
        "data hash": _hash(content["data_hash"]),
        "commit": _hash(content["commit"]),
        "hardware": hardware(content["hardware"]),
        "wall time": f"{content['wall_seconds']:.1f} s",
        "date": content["date"],
        "result file": element("code", name),
    }
    lines = [join([element("dt", term), element("dd", fact)]) for term, fact in facts.items()]
    packages = [f"{package} {version}" for package, version in content["packages"].items()]
    title = element("h4", content["key"], element("small", content["encoder"]))
    close = element("button", "Close", type="button", popovertarget=identity, popovertargetaction="hide")
    return element(
        "div",
        element("header", title, close),
        element("dl", *lines),
        element("details", element("summary", "Packages"), element("p", ", ".join(packages))),
        id=identity,
        popover=True,
        role="dialog",
        aria_label=f"where {content['key']} of {content['encoder']} comes from",
    )


def identity_of(suite: SavedSuite, name: str) -> str:
    """The HTML id of a result file's popover."""
    return "from-" + hashlib.sha256(f"{suite.board['suite']}/{name}".encode()).hexdigest()[:12]


def _seeds(suite: SavedSuite, name: str, metric: Mapping) -> dict[str, str | Markup]:
    """The mean, its spread, and a way to each seed's own popover."""
    names = result_files(metric)
    if len(names) == 1:
        return {}
    seeds = []
    for other in names:
        content = suite.result(other)
        words = f"seed {content['seed']}: {_number(content['value'], content['unit'])}"
        way = {"type": "button", "popovertarget": identity_of(suite, other)}
        seeds.append(element("b", words) if other == name else element("button", words, **way))
    unit = suite.result(name)["unit"]
    return {
        f"mean of {len(names)} seeds": _number(metric["value"], unit),
        "standard deviation": _number(metric["std"], unit),
        "seeds": join([part for seed in seeds for part in (seed, " ")]),
    }


def hardware(facts: Mapping) -> str:
    """Processor, cores, memory, GPU and threads in one line."""
    words = [
        facts.get("processor"),
        f"{facts.get('cores')} cores",
        f"{facts.get('memory_gib')} GiB",
        facts.get("gpu") or "no GPU",
        f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}" if facts.get("threads") else None,
    ]
    return ", ".join(str(word) for word in words if word)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    return f"{value!r} {unit}".strip()


def _hash(value: str | None) -> Markup:
    return element("code", value) if value else element("span", "none")
