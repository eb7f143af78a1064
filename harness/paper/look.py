"""One look at every source: found or not, what is in it, what is wrong with it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from harness.paper import data_sets, networks, records
from harness.paper.sources import LARGE, NEXT_MIXES, SOURCES, TO_TRAIN, SourcesConfig, how_to_get, places
from harness.replica.mark import is_in_replica

Counts = Mapping[str, int]
# source -> a look at its place: what is counted, then each fault in one line
CHECKS: dict[str, Callable[[Path], tuple[Counts, list[str]]]] = {
    "imagenet": data_sets.imagenet,
    "llava_pretrain": records.llava_pretrain,
    "llava_mix": records.llava_mix,
    "open_next_mix": records.open_next_mix,
    "next_mix": records.next_mix,
    "benchmarks": data_sets.benchmarks,
    "language_model": networks.language_model,
    "openvision3": networks.openvision3,
    "vae": networks.vae,
    "clip": networks.clip,
    "inception": networks.inception,
    "lpips": networks.lpips,
    "adm": networks.adm,
    "dino": networks.dino,
    "recap_datacomp": data_sets.recap_datacomp,
    "bert": networks.bert,
}


# What each suite reads; understanding also the mix of each of its frameworks
NEEDED = {
    "understanding": (
        "llava_pretrain",
        "benchmarks",
        "language_model",
        "openvision3",
        "vae",
        "clip",
    ),
    "generation": ("imagenet", "openvision3", "vae", "clip", "inception", "lpips", "adm", "dino"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """One source. path: where it is, None if it was not found; looked: where it was looked for."""

    name: str
    what: str
    path: Path | None
    looked: tuple[Path, ...]
    how: str
    counts: Counts
    faults: tuple[str, ...]
    is_replica: bool

    @property
    def is_fine(self) -> bool:
        return self.path is not None and not self.faults


def look(
    config: SourcesConfig,
    data_root: Path | None,
    needed: Iterable[str] = tuple(SOURCES),
    *,
    is_large: bool = False,
    is_streamed: bool = False,
) -> list[Seen]:
    """Look at the sources in `needed`.

    is_large: the tables of the L encoders, whose baseline is another CLIP.
    is_streamed: encoders are trained on shards that lie elsewhere; of `recap_datacomp` they read what is
        held out.
    """
    checks = CHECKS | ({"recap_datacomp": data_sets.recap_held_out} if is_streamed else {})
    seen = []
    for name in needed:
        source = (SOURCES | NEXT_MIXES | TO_TRAIN | (LARGE if is_large else {}))[name]
        looked = tuple(places(name, source, config, data_root))
        path = next((place for place in looked if place.exists()), None)
        counts, faults = _check(checks[name], path) if path is not None else ({}, [])
        replica = path is not None and is_in_replica(path)
        how = how_to_get(name, source, config)
        seen.append(Seen(name, source.what, path, looked, how, counts, tuple(faults), replica))
    return seen


def _check(check: Callable[[Path], tuple[Counts, list[str]]], path: Path) -> tuple[Counts, list[str]]:
    try:
        return check(path)
    except (ValueError, OSError) as error:
        return {}, [str(error).splitlines()[0]]


def render(seen: Sequence[Seen]) -> str:
    """A line for each source: name, found or not, what is in it; below it each fault, or how to get it."""
    lines = []
    for each in seen:
        state = "missing" if each.path is None else "ok" if each.is_fine else "wrong"
        counts = ", ".join(f"{num:,} {what}" for what, num in each.counts.items())
        mark = "  (replica)" if each.is_replica else ""
        lines.append(f"{state:8}{each.name:16}{each.what:22}{counts}{mark}".rstrip())
        if each.path is None:
            where = ", ".join(map(str, each.looked)) or f"nowhere: give data_root or sources.{each.name}"
            lines += [f"        looked for in {where}", f"        get it from {each.how}"]
        lines += [f"        {fault}" for fault in each.faults]
    return "\n".join(lines)
