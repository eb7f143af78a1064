"""Stages that more than one suite, or more than one row, starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from encoder.data.options import OF_SCENE_CENTRIC, ScenesConfig
from encoder.options import TokensConfig
from encoder.runtime.config import ROOT, ConfigError, check_keys
from encoder.runtime.stage import sha256_json
from harness.config import stage_config
from harness.encoders import Encoder
from harness.own_data import OwnDataConfig, list_source
from harness.own_data.questions import OwnCaptionsConfig
from harness.running.hashes import hash_files, remembered
from harness.running.stages import Stage
from harness.suites.request import Request
from llava_bridge.config import ViewsConfig

VGG = "vgg16-397923af.pth"  # beside LPIPS' trunk that judges: the one that is trained with
MIN_SIDE = 16  # px of one's own pictures: a patch of most towers; SSIM's window takes 11
OWN_CAPTIONS = "own_captions"  # stage, lmms-eval task and its file
# One core's time for one's own pictures (65 % of it writes PNG), to estimate a stage by
_SECONDS_TO_START, _SECONDS_PER_BYTE_READ, _SECONDS_PER_PIXEL_WRITTEN = 3.0, 35e-9, 0.25e-6
_BYTES_PER_PIXEL, _BYTES_PER_SAMPLE = 2.4, 3000  # of a PNG of a photograph, and of what a tar adds


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The generation suite's pictures: made by a stage, or ImageNet as it lies on the disk."""

    folder: str
    made_by: Stage | None  # None: they are there

    @property
    def inputs(self) -> list[Stage]:
        """The stage that makes them, if there is one."""
        return [] if self.made_by is None else [self.made_by]

    @property
    def places(self) -> tuple[Path, ...]:
        """Their folder, where no stage makes them."""
        return (Path(self.folder),) if self.made_by is None else ()


def trunk_to_train_with(places: Mapping[str, Path]) -> str:
    """LPIPS' trunk for whatever is trained on it; another one judges."""
    return str(places["lpips"].with_name(VGG))


def add_scenes(request: Request, of_class: Mapping[str, Any] | None = None) -> Stage:
    """Pictures, texts and questions of the embedded world; `of_class`: other pictures, for generation alone,
    by what differs from the preset's `scenes`."""
    if of_class is None:
        config, label = stage_config(ScenesConfig, request.preset.scenes, "scenes"), ""
    else:
        pictures_alone = dict.fromkeys(OF_SCENE_CENTRIC, 0)
        section = {**request.preset.scenes, **pictures_alone, **of_class}
        config, label = stage_config(ScenesConfig, section, "generation.scenes"), "scenes for generation"
    name = "scenes" if of_class is None else "scenes_generation"
    return request.graph.add(
        "scenes", "encoder.data.scenes.write", config, label=label, seconds=request.seconds(name)
    )


def find_pictures(request: Request) -> Pictures:
    """ImageNet on real sources, else one's own pictures where the preset names some, else those of
    generation.scenes, else Scenes."""
    if request.places is not None:
        return Pictures(folder=str(request.places["imagenet"]), made_by=None)
    of_class = request.preset.generation.scenes
    stage = add_pictures(request) if of_class is None else add_scenes(request, of_class)
    return Pictures(folder=str(stage.folder), made_by=stage)


def add_pictures(request: Request) -> Stage:
    """One's own pictures where the preset names some, else Scenes."""
    section = request.preset.own_data
    if not section:
        return add_scenes(request)
    check_keys(OwnDataConfig, section, "own_data")
    if "source" not in section:
        raise ConfigError("own_data needs own_data.source, a folder of pictures or shards")
    listing = list_source(str(section["source"]))
    section = {"image_size": request.preset.scenes.get("image_size"), **section}
    contents = hash_files(listing.every_file(), remembered(request.graph.runs_dir))
    source = ROOT / str(section["source"])
    digest = sha256_json({str(path.relative_to(source)): digest for path, digest in contents.items()})
    config = stage_config(OwnDataConfig, section, "own_data", listing=digest)
    if config.image_size < MIN_SIDE:
        raise ConfigError(
            f"own_data.image_size {config.image_size} must be {MIN_SIDE} or more: towers see patches of "
            f"{MIN_SIDE} pixels"
        )
    num_pixels = listing.num_pictures * config.image_size**2
    seconds = _SECONDS_PER_BYTE_READ * listing.num_bytes + _SECONDS_PER_PIXEL_WRITTEN * num_pixels
    num_bytes = _BYTES_PER_PIXEL * num_pixels + _BYTES_PER_SAMPLE * listing.num_pictures
    return request.graph.add(
        "own_data",
        "harness.own_data",
        config,
        label="own pictures",
        seconds=_SECONDS_TO_START + seconds if num_pixels else 0.0,
        disk_mb=num_bytes / 1e6,
    )


def add_captions(request: Request) -> Stage:
    """One's own pictures and captions as LLaVA's training data, and the held-out ones as questions."""
    pictures = add_pictures(request)
    config = OwnCaptionsConfig(data=str(pictures.folder))
    return request.graph.add(
        OWN_CAPTIONS,
        "harness.own_data.questions",
        config,
        label="own captions",
        inputs=[pictures],
        seconds=2 * pictures.seconds,  # it reads what that one wrote, and writes it again
        disk_mb=pictures.disk_mb,
    )


def num_classes(request: Request) -> dict[str, int]:
    """What one's own pictures say about the generator's classes, as a part of its section."""
    section = request.preset.own_data
    if not section:
        return {}
    names = list_source(str(section["source"])).class_names
    count = section.get("num_classes") or len(names)
    if not count or (names and count != len(names)):
        held = f"the folder has {len(names)}" if names else "shards do not say how many: set it"
        raise ConfigError(f"own_data.num_classes is {section.get('num_classes')}; {held}")
    return {"num_classes": count}


def add_tokens(
    request: Request,
    encoder: Encoder,
    pictures: Literal["llava", "train", "val", "test"],
    scenes: Stage,
    limit: int | None = None,
) -> Stage:
    """The frozen tokens of the LLaVA pictures (as the language model sees them) or of the first `limit`
    pictures of a split (as the DiT does)."""
    if pictures == "llava":
        records = [str(scenes.folder / "llava" / name) for name in ("pretrain.json", "instruct.json")]
        place = {"data": str(scenes.folder / "llava"), "records": records}
        features = encoder.config.features.understanding
    else:
        place = {"data": str(scenes.folder), "split": pictures}
        place |= {} if limit is None else {"limit": limit}
        features = encoder.config.features.generation
    config = stage_config(
        TokensConfig,
        request.preset.tokens,
        "tokens",
        encoder=encoder.word,
        features=features,
        device=request.device,
        **place,
    )
    return request.graph.add(
        "tokens",
        "encoder.tokens",
        config,
        label=f"{encoder.name}: tokens of {pictures} pictures",
        inputs=[scenes, *encoder.stages],
        files=encoder.files,
        **request.estimates(f"tokens_{pictures}", "tokens"),
    )


def add_views(request: Request, encoder: Encoder, scenes: Stage) -> Stage:
    """The frozen tokens, or VAE latents, of all views of the LLaVA pictures: LLaVA-NeXT's."""
    own = request.preset.llava.next
    config = stage_config(
        ViewsConfig,
        request.preset.tokens,
        "tokens",
        encoder=encoder.word,
        features=encoder.config.features.understanding,
        device=request.device,
        data=str(scenes.folder / "llava"),
        records=[str(scenes.folder / "llava" / name) for name in ("pretrain.json", "instruct.json")],
        holds=own.holds,
        **({"tiles": own.tiles} if own.tiles is not None else {}),
    )
    return request.graph.add(
        "views",
        "llava_bridge.any_resolution.cache",
        config,
        label=f"{encoder.name}: {own.holds} of views",
        inputs=[scenes, *encoder.stages],
        files=encoder.files,
        **request.estimates("views", "views"),
    )
