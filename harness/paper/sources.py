"""The sources by name, twelve for the tables, two for LLaVA-NeXT's recipes, two to train an encoder on: where
each is looked for, how it is got. The layout: docs/paper.md.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from encoder.runtime import hub
from encoder.runtime.config import ROOT, ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourcesConfig:
    """A place of its own for a source; None: its place under `data_root`. Of weights also the hub id of a
    repository in the hub's cache, `owner/name` or `owner/name@revision`."""

    imagenet: str | None = None  # folders of synsets, the hub's parquet, or shards
    llava_pretrain: str | None = None
    llava_mix: str | None = None
    benchmarks: str | None = None
    language_model: str | None = None
    openvision3: str | None = None  # a folder of releases, or one release
    vae: str | None = None
    clip: str | None = None
    inception: str | None = None  # these four: the file, or its folder
    lpips: str | None = None
    adm: str | None = None
    dino: str | None = None
    open_next_mix: str | None = None
    next_mix: str | None = None  # folder of parquet files that hold their pictures
    recap_datacomp: str | None = None  # folder with train/*.tar and held_out/val/*.tar
    bert: str | None = None  # folder with vocab.txt


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """places: under data_root, in the order in which they are looked for."""

    what: str
    places: tuple[str, ...]
    how: str


SOURCES = {
    "imagenet": Source(
        "ImageNet-1k", ("imagenet", "imagenet-1k"), "image-net.org, or hub ILSVRC/imagenet-1k"
    ),
    "llava_pretrain": Source("LLaVA-Pretrain", ("LLaVA-Pretrain",), "hub liuhaotian/LLaVA-Pretrain"),
    "llava_mix": Source(
        "LLaVA's mix of 665k",
        ("LLaVA-Instruct",),
        "hub liuhaotian/LLaVA-Instruct-150K, and its pictures' sets",
    ),
    "benchmarks": Source("the five benchmarks", ("benchmarks",), "hub lmms-lab-encoder/<each>"),
    "language_model": Source("language model", ("vicuna-7b-v1.5",), "hub lmsys/vicuna-7b-v1.5"),
    "openvision3": Source("OpenVision 3", ("openvision3",), 'hub collection "OpenVision 3" of UCSC-VLAA'),
    "vae": Source(
        "FLUX.1's VAE", ("FLUX.1-dev/vae", "FLUX.1-schnell/vae"), "hub black-forest-labs/FLUX.1-dev"
    ),
    "clip": Source("CLIP B/16", ("clip-vit-base-patch16",), "hub openai/clip-vit-base-patch16"),
    "inception": Source(
        "Inception of 2015",
        ("inception/weights-inception-2015-12-05-6726825d.pth",),
        "github.com/toshas/torch-fidelity, release v0.2.0",
    ),
    "lpips": Source(
        "LPIPS' trunks", ("lpips/alexnet-owt-7be5be79.pth",), "download.pytorch.org/models/<file>"
    ),
    "adm": Source(
        "ADM's statistics",
        ("adm/VIRTUAL_imagenet256_labeled.npz",),
        "github.com/openai/guided-diffusion, evaluations",
    ),
    "dino": Source("DINO ViT-S/8", ("dino/model.safetensors",), "hub timm/vit_small_patch8_224.dino"),
}
NEXT_MIXES = {  # read only by LLaVA-NeXT's rows, where llava.next.recipe asks
    "open_next_mix": Source(
        "Open-LLaVA-NeXT's 1M",
        ("Open-LLaVA-NeXT",),
        "hub Lin-Chen/Open-LLaVA-NeXT-mix1M, and its pictures' sets",
    ),
    "next_mix": Source("LLaVA-NeXT's 779k", ("LLaVA-NeXT-Data",), "hub lmms-lab/LLaVA-NeXT-Data"),
}
TO_TRAIN = {  # read only where a row's encoder is trained first
    "recap_datacomp": Source(
        "Recap-DataComp-1B", ("recap-datacomp",), "hub UCSC-VLAA/Recap-DataComp-1B, by img2dataset"
    ),
    "bert": Source(
        "BERT's vocabulary", ("bert-base-uncased",), "hub google-bert/bert-base-uncased, vocab.txt"
    ),
}
DATA = ("imagenet", "llava_pretrain", "llava_mix", "benchmarks", "recap_datacomp", *NEXT_MIXES)
WEIGHTS = tuple(name for name in SOURCES | TO_TRAIN if name not in DATA)
LARGE = {"clip": Source("CLIP L/14", ("clip-vit-large-patch14",), "hub openai/clip-vit-large-patch14")}


def locate(
    config: SourcesConfig,
    data_root: Path | None,
    *,
    is_large: bool = False,
    has_training: bool = False,
    mixes: Collection[str] = (),
) -> dict[str, Path]:
    """Every source's path by its name: the first of its places that is there, else the first of them.

    has_training: those of `TO_TRAIN` too. mixes: those of `NEXT_MIXES` too that are among them.
    Raises:
        ConfigError: a source has no place: neither one of its own nor a `data_root`.
    """
    found, more = {}, (LARGE if is_large else {}) | (TO_TRAIN if has_training else {})
    more |= {name: source for name, source in NEXT_MIXES.items() if name in mixes}
    for name, source in (SOURCES | more).items():
        looked = places(name, source, config, data_root)
        if not looked:
            raise ConfigError(
                f"no place for {name} ({source.what}): give data_root=<folder>, laid out as docs/paper.md "
                f"says, or sources.{name}=<path>"
            )
        place = next((place for place in looked if place.exists()), looked[0])
        found[name] = place.parent.resolve() / place.name  # the hub's cache links files to bare hashes
    return found


def places(name: str, source: Source, config: SourcesConfig, data_root: Path | None) -> list[Path]:
    """Where one source is looked for; a file's own place may also be given as its folder."""
    own = getattr(config, name)
    if own is None:
        return [ROOT / data_root / place for place in source.places] if data_root is not None else []
    path = hub.snapshot(own) if name in WEIGHTS and hub.is_hub_id(own) else ROOT / own
    part = Path(source.places[0]).name  # a file, or the part of a pipeline
    is_part = part == "vae" or Path(part).suffix in (".pth", ".npz", ".safetensors")
    return [path / part, path] if is_part else [path]


def how_to_get(name: str, source: Source, config: SourcesConfig) -> str:
    """Where a source is published; of one that is given as a hub id, the command that downloads it."""
    own = getattr(config, name)
    is_id = own is not None and name in WEIGHTS and hub.is_hub_id(own)
    return hub.download_command(own) if is_id else source.how
