"""Ablation: what each part of OpenVision 3's recipe is worth. A study is a table of variants of one training.

scenes -> encoder.train -> trained -> reconstruct -> score                       for each variant
                             trained -> both bridges, as the other suites have them    for the chosen studies
                 encoder.train -> synergy (cosine of the branches' gradients)    for the study of branches

Equal variants of different studies are one row, trained once.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoder.options import EncoderConfig
from encoder.runtime.config import ConfigError, choose
from encoder.training.options import SynergyConfig, TrainConfig
from harness.config import merged, stage_config
from harness.described import ENCODER_FILE
from harness.encoders import Encoder
from harness.running.stages import Stage
from harness.sections import AblationSections, LlavaSections, RaeSections
from harness.suites.generation import RECONSTRUCTIONS, add_generator, add_reconstruction, add_samples
from harness.suites.lessons import of_scenes
from harness.suites.picture_sets import add_reference
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import Pictures, add_scenes
from harness.suites.understanding import add_answers
from harness.tables.result_files import Part, Row
from harness.trained import KEYS, TrainedConfig

BRANCHES = "branches"  # the study whose variants' gradients are compared
ANSWER_KEYS = ("Scenes-SEED", "Scenes-POPE/f1/official")


@dataclass
class Variant:
    """One training, and the studies that show it: study -> label."""

    config: TrainConfig
    name: str  # of the first study that has it
    trained: Stage
    groups: dict[str, str] = field(default_factory=dict)


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite.

    Raises:
        ConfigError: the preset has no ablation section, or one that fits no study.
    """
    sections = request.preset.ablation
    if sections is None:
        raise ConfigError("this preset has no ablation section; suite=ablation runs with preset=demo")
    for name in (*sections.variants, *sections.bridges):
        choose(request.suite.studies, name, "study")
    request = dataclasses.replace(request, preset=_at_this_size(request.preset, sections))
    scenes = add_scenes(request)
    reference = add_reference(request, Pictures(folder=str(scenes.folder), made_by=scenes))
    variants = _variants(request, sections, scenes)
    rows, rebuilt, synergy = [], {}, {}
    for variant in variants:
        row, rebuilt[variant.name] = _row(request, variant, scenes, reference, sections)
        rows.append(row)
        if BRANCHES in variant.groups:
            synergy[variant.groups[BRANCHES]] = _add_synergy(request, variant, scenes, sections)
    return SuitePlan(
        suite=request.suite,
        rows=rows,
        draw=lambda folder, board: _draw(folder, request, variants, reference, rebuilt, synergy),
    )


def _at_this_size(preset: Any, sections: AblationSections) -> Any:
    """The preset with the bridges' values that the ablation section gives."""
    for name, cls in (("llava", LlavaSections), ("rae", RaeSections)):
        changes = getattr(sections, name)
        for key in changes:
            choose({each.name: None for each in dataclasses.fields(cls)}, key, f"section of {name}")
        section = getattr(preset, name)
        values = {key: merged(getattr(section, key), change) for key, change in changes.items()}
        preset = dataclasses.replace(preset, **{name: dataclasses.replace(section, **values)})
    return preset


def _variants(request: Request, sections: AblationSections, scenes: Stage) -> list[Variant]:
    found: dict[Path, Variant] = {}
    for study, about in request.suite.studies.items():
        for label, changes in {**about.variants, **sections.variants.get(study, {})}.items():
            section = merged(sections.train, changes)
            filled, inputs = {"data": str(scenes.folder), "seed": request.seed}, [scenes]
            if request.foundation is not None and "vae" not in section:
                filled["vae"] = str(request.foundation.vae.folder / "weights")
                inputs.append(request.foundation.vae)
            config = stage_config(
                TrainConfig, section, f"ablation.{study}.{label}", device=request.device, **filled
            )
            name = f"{study}: {label}"
            stage = request.graph.add(
                "encoder_train",
                "encoder.train",
                config,
                label=f"{name}: train",
                inputs=inputs,
                files=_codec_files(config),
                seconds=request.seconds("encoder_train"),
            )
            variant = found.setdefault(stage.folder, Variant(config, name, stage))
            variant.groups[study] = label
    return list(found.values())


def _codec_files(config: TrainConfig) -> Iterator[Path]:
    """The VAE's folder, where it is one."""
    from encoder.runtime.config import ROOT

    if config.vae is not None and (ROOT / config.vae).is_dir():
        yield ROOT / config.vae


def _row(
    request: Request, variant: Variant, scenes: Stage, reference: Stage, sections: AblationSections
) -> tuple[Row, Stage]:
    """The row of a variant, and the stage that reconstructs with it."""
    described = request.graph.add(
        "trained",
        "harness.trained",
        TrainedConfig(run=str(variant.trained.folder), name=variant.name),
        label=f"{variant.name}: losses",
        inputs=[variant.trained],
        seconds=request.seconds("trained"),
    )
    encoder = Encoder(
        name=variant.name,
        word=str(described.folder / ENCODER_FILE),
        config=EncoderConfig(name=variant.name, source=variant.name, vae=variant.config.vae, decoder="own"),
        files=(),
        stages=(variant.trained, described),
    )
    checkpoint, pictures = encoder.checkpoint, Pictures(folder=str(scenes.folder), made_by=scenes)
    stage, rebuilt = add_reconstruction(request, encoder, pictures, reference)
    parts = [Part(stage=described, keys=KEYS, checkpoint=checkpoint), rebuilt]
    if set(variant.groups) & set(sections.bridges):
        answers = add_answers(request, encoder, of_scenes(request, ANSWER_KEYS))
        parts.append(dataclasses.replace(answers, only_keys=True))
        trained = add_generator(request, encoder, pictures, stage)
        parts.append(add_samples(request, encoder, reference, trained)[1])
    source = f"trained here, {variant.config.num_steps} steps of {variant.config.batch_size}"
    row = Row(
        encoder=variant.name,
        kind="measured",
        source=source,
        parts=tuple(parts),
        undefined={},
        groups=variant.groups,
    )
    return row, stage


def _add_synergy(request: Request, variant: Variant, scenes: Stage, sections: AblationSections) -> Stage:
    config = stage_config(
        SynergyConfig,
        sections.synergy,
        "ablation.synergy",
        run=str(variant.trained.folder),
        device=request.device,
    )
    return request.graph.add(
        "synergy",
        "encoder.synergy",
        config,
        label=f"{variant.name}: gradients of the two branches",
        inputs=[*variant.trained.inputs, variant.trained],
        files=_codec_files(variant.config),
        seconds=request.seconds("synergy"),
    )


def _draw(
    folder: Path,
    request: Request,
    variants: list[Variant],
    reference: Stage,
    rebuilt: Mapping[str, Stage],
    synergy: Mapping[str, Stage],
) -> list[Path]:
    """For each study the curves of all terms; reconstructions by the study of branches; the cosines."""
    from harness.metrics.config import PICTURES
    from harness.metrics.picture_sets import read_pictures
    from harness.tables import curves, figures  # here: matplotlib and numpy would delay the command line
    from harness.trained import read_log

    complete = [variant for variant in variants if variant.trained.done() is not None]
    files = []
    for study, about in request.suite.studies.items():
        logs = {v.groups[study]: read_log(v.trained.folder) for v in complete if study in v.groups}
        if logs:
            files.append(curves.losses(folder / f"curves_{study}.png", logs, title=about.title))
    shown = {v.groups[BRANCHES]: rebuilt[v.name] for v in complete if BRANCHES in v.groups}
    pictures = {
        label: stage.folder / RECONSTRUCTIONS for label, stage in shown.items() if stage.done() is not None
    }
    if pictures and reference.done() is not None:
        sets = {"original": reference.folder / PICTURES, **pictures}
        loaded = {label: read_pictures(path) for label, path in sets.items()}
        files.append(figures.reconstructions(folder / "reconstructions_branches.png", loaded))
    tables = {
        label: stage.folder / "synergy.json" for label, stage in synergy.items() if stage.done() is not None
    }
    if tables:
        files.append(curves.cosines(folder / "synergy.png", tables))
    return files
