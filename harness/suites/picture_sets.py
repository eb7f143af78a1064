"""The generation suite's real pictures, one set or two, each with the judge and what is measured by it."""

import dataclasses
from typing import Any

from encoder.metrics import weights
from encoder.runtime.config import ROOT, ConfigError
from harness.config import stage_config
from harness.encoders import resolve_encoder
from harness.metrics.config import ENCODER, INCEPTION, Kind, ReferenceConfig, keys_of
from harness.running.stages import Stage
from harness.suites.request import Request
from harness.suites.scoring import if_present
from harness.suites.shared import Pictures, add_scenes, find_pictures
from harness.suites.sizes import add_count
from harness.tables.result_files import SCENE_CENTRIC


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Real pictures, what is measured by them, and what figures show of it: name -> (stage, its file)."""

    pictures: Pictures
    reference: Stage
    note: str  # after the labels of what is measured by them
    validation: Stage  # whose pictures choose the guidance
    reconstructed: dict[str, tuple[Stage, str]] = dataclasses.field(default_factory=dict)
    generated: dict[str, tuple[Stage, str]] = dataclasses.field(default_factory=dict)

    def keys(self, *kinds: Kind) -> list[str]:
        """Of all numbers of these kinds."""
        return [key for kind in kinds for key in keys_of(kind, self.reference.config)]


def find_picture_sets(request: Request) -> list[PictureSet]:
    """The suite's pictures, and, where the preset asks for both, its scene-centric ones after them."""
    picture_sets = [_picture_set(request, find_pictures(request))]
    if request.preset.generation.also_scene_centric:
        scenes = add_scenes(request)
        pictures = Pictures(folder=str(scenes.folder), made_by=scenes)
        picture_sets.append(_picture_set(request, pictures, prefix=SCENE_CENTRIC))
    return picture_sets


def _picture_set(request: Request, pictures: Pictures, prefix: str = "") -> PictureSet:
    note = f", {prefix.removesuffix('/')}" if prefix else ""
    reference = add_reference(request, pictures, f"real pictures and the floor{note}", prefix=prefix)
    validation = None if prefix else _add_validation(request, pictures)
    picture_set = PictureSet(pictures, reference, note, validation or reference)
    if pictures.made_by is not None:
        add_count(request, pictures.made_by, reference.config)
    return picture_set


def _add_validation(request: Request, pictures: Pictures) -> Stage | None:
    """Pictures of the val split, by which guidance is chosen where the preset wants that.

    Raises:
        ConfigError: there are none, or too few.
    """
    num = request.preset.generation.num_validation
    if num is None or request.preset.rae.guided is None:
        return None
    held = getattr(getattr(pictures.made_by, "config", None), "num_val", 0)
    if held < 2 * num:
        raise ConfigError(
            f"generation.num_validation={num} takes two sets of val pictures, {2 * num}; there are {held}"
        )
    sizes = {"num_samples": num, "kernel_subset_size": max(2, num // 2)}
    return add_reference(request, pictures, "validation pictures", split="val", **sizes)


def add_reference(
    request: Request, pictures: Pictures, label: str = "real pictures and the floor", **changes: Any
) -> Stage:
    """The real pictures, and the judge with all the files that it is made of; `changes` to the preset's
    section.

    Raises:
        ConfigError: the judge is one of the encoders that are to be judged.
        FileNotFoundError: a file of it is not there.
    """
    section = {**request.preset.reference, **changes}
    filled = {"data": pictures.folder, "device": request.device}
    if request.places is not None:
        filled |= {"weights": str(request.places["inception"]), "statistics": str(request.places["adm"])}
    config = stage_config(ReferenceConfig, section, "reference", **filled)
    files = [ROOT / config.statistics] if config.statistics else []
    if config.extractor == INCEPTION:
        files += if_present(weights.find(weights.INCEPTION, config.weights))
    elif config.extractor.startswith(ENCODER):
        judge = resolve_encoder(config.extractor.removeprefix(ENCODER))
        if judge.name in [encoder.name for encoder in request.encoders]:
            raise ConfigError(f"{judge.name} is both a row and the judge; nothing may judge itself")
        files += judge.files
    return request.graph.add(
        "reference",
        "harness.metrics.reference",
        config,
        label=label,
        inputs=pictures.inputs,
        files=files,
        pictures=pictures.places,
        seconds=request.seconds("reference"),
    )
