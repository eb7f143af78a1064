"""Generation: what can be decoded from frozen tokens, and what can be generated as such tokens.

scenes -> reference (two disjoint real sets; the floor)
scenes -> reconstruct -> score                                        for each encoder
scenes -> tokens of test pictures -> decode -> score                  for each encoder: its ceiling
scenes -> tokens of the train pictures -> dit -> generate -> score    for each encoder
On real sources ImageNet takes Scenes' place, and the DiT sees its tokens live. An encoder whose config says
`decoder: train` gets a pixel decoder first, on the same pictures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder.metrics import weights
from encoder.runtime.config import ROOT, ConfigError
from harness.config import stage_config
from harness.encoders import Encoder, resolve_encoder
from harness.metrics.config import (
    ENCODER,
    FEATURES,
    INCEPTION,
    PICTURES,
    Kind,
    ReferenceConfig,
    keys_of,
)
from harness.running.stages import Stage
from harness.suites.ceilings import CEILING, RECONSTRUCTIONS, add_ceiling, ceiling_says
from harness.suites.released import describe
from harness.suites.request import Request, SuitePlan
from harness.suites.scoring import Tokens, add_score, add_stage, if_present, trunk_of
from harness.suites.shared import (
    Pictures,
    add_scenes,
    add_tokens,
    find_pictures,
    num_classes,
    trunk_to_train_with,
)
from harness.suites.sizes import add_count, check_sizes, says_how_small
from harness.tables.result_files import SCENE_CENTRIC, Part, Row
from rae_bridge.config import (
    GenerateConfig,
    ReconstructConfig,
    SweepConfig,
    TrainDecoderConfig,
    TrainDiTConfig,
)

SAMPLES = "samples.npz"
TOKENS = "tokens"  # folder of the samples' tokens, below their stage's
TRAIN = "train"  # as an encoder's decoder: a pixel decoder is trained for it
FLOOR = "real vs real"
GUIDED_REASON = "guidance changes nothing in what is reconstructed: see the row without"
FLOOR_REASON = "the two sets hold different pictures: nothing is reconstructed"
_SWEEP_SEED = 1_000_000  # more than the samples'
BLIND_REASON = "this encoder sees nothing: there is nothing to decode"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    yards = find_yards(request)
    rows = []
    for encoder in request.encoders:
        rows += [_blind_row(encoder, yards)] if encoder.is_blind else _rows_of(request, encoder, yards)
    rows.append(_floor_row(yards, rows))
    main = yards[0]
    return SuitePlan(
        suite=request.suite,
        rows=rows,
        draw=lambda folder, board: _draw(folder, main),
        check=lambda: [check_sizes(request, yard.pictures.made_by, yard.reference.config) for yard in yards],
    )


@dataclasses.dataclass(frozen=True)
class Yard:
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


def find_yards(request: Request) -> list[Yard]:
    """The suite's pictures, and, where the preset asks for both, its scene-centric ones after them."""
    yards = [_yard(request, find_pictures(request))]
    if request.preset.generation.also_scene_centric:
        scenes = add_scenes(request)
        pictures = Pictures(folder=str(scenes.folder), made_by=scenes)
        yards.append(_yard(request, pictures, prefix=SCENE_CENTRIC))
    return yards


def _yard(request: Request, pictures: Pictures, prefix: str = "") -> Yard:
    note = f", {prefix.removesuffix('/')}" if prefix else ""
    reference = add_reference(request, pictures, f"real pictures and the floor{note}", prefix=prefix)
    validation = None if prefix else _add_validation(request, pictures)
    yard = Yard(pictures, reference, note, validation or reference)
    if pictures.made_by is not None:
        add_count(request, pictures.made_by, reference.config)
    return yard


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


def _blind_row(encoder: Encoder, yards: Sequence[Yard]) -> Row:
    keys = [key for yard in yards for key in yard.keys("reconstruction", "generation")]
    return Row(
        encoder=encoder.name,
        kind="blind",
        source=encoder.source("generation"),
        parts=(),
        undefined=dict.fromkeys(keys, BLIND_REASON),
    )


def _floor_row(yards: Sequence[Yard], rows: Sequence[Row]) -> Row:
    """Real pictures against real pictures; `rows`: the others."""
    parts = []
    for yard in yards:
        data = (yard.reference.folder / PICTURES,)
        parts.append(Part(stage=yard.reference, keys=tuple(yard.keys("generation")), data=data))
    keys = [key for yard in yards for key in yard.keys("reconstruction")]
    keys += [key for row in rows for part in row.parts for key in part.keys if key.startswith("LPIPS")]
    return Row(
        encoder=FLOOR,
        kind="floor",
        source=f"two disjoint sets of real test pictures{says_how_small(yards[0].reference.config)}",
        parts=tuple(parts),
        undefined=dict.fromkeys(keys, FLOOR_REASON),
    )


def _rows_of(request: Request, encoder: Encoder, yards: Sequence[Yard]) -> list[Row]:
    """What an encoder's generator draws, with guidance where that is asked for, and what a perfect one
    would."""
    name, encoder = encoder.name, _with_decoder(request, encoder, yards[0].pictures)
    plain, guided, ceiling, rebuilt = [], [], [], []
    note = request.graph.note
    for yard in yards:
        reference, request.graph.note = yard.reference, note + yard.note
        reconstructed, part = add_reconstruction(request, encoder, yard.pictures, reference)
        rebuilt += part.keys
        trained = add_generator(request, encoder, yard.pictures, reconstructed)
        losses = Part(stage=trained, keys=(), checkpoint=(trained.folder / "weights",))
        generated, sampled = add_samples(request, encoder, reference, trained)
        plain += [part, sampled, *([] if reference.config.prefix else [losses])]
        decoded, file, part = add_ceiling(request, encoder, yard.pictures, reference, reconstructed)
        ceiling.append(part)
        yard.reconstructed[name] = (reconstructed, RECONSTRUCTIONS)
        yard.generated[name] = (generated, SAMPLES)
        if request.preset.rae.guided is not None and not reference.config.prefix:
            sweep = add_sweep(request, encoder, yard.validation, trained)
            generated, sampled = add_samples(request, encoder, reference, trained, sweep)
            guided.append(sampled)
            yard.generated[f"{name}, guided"] = (generated, SAMPLES)
        yard.generated[f"{name}, {CEILING}"] = (decoded, file)
    request.graph.note = note
    source = encoder.source("generation")
    rows = [Row(encoder=name, kind="measured", source=source, parts=tuple(plain), undefined={})]
    if guided:
        rows.append(
            Row(
                encoder=f"{name}, guided",
                kind="measured",
                source=f"{source}, scale and interval of the least distance on a grid",
                parts=tuple(guided),
                undefined=dict.fromkeys(rebuilt, GUIDED_REASON),
            )
        )
    what, reason = ceiling_says(yards[0].reference)
    rows.append(
        Row(
            encoder=f"{name}, {CEILING}",
            kind="ceiling",
            source=f"{source}: {what}",
            parts=tuple(ceiling),
            undefined=dict.fromkeys(rebuilt, reason),
        )
    )
    return rows


def _with_decoder(request: Request, encoder: Encoder, pictures: Pictures) -> Encoder:
    """The encoder with what turns its tokens into pixels: trained here, where its config says so."""
    if encoder.config.decoder != TRAIN:
        return encoder
    section = request.preset.rae.train_decoder
    if request.places is not None:
        section = {"lpips_trunk": trunk_to_train_with(request.places), **section}
        if section.get("adversarial") is not None:
            dino = {"checkpoint": str(request.places["dino"])}
            section["adversarial"] = {**section["adversarial"], **dino}
    config = stage_config(
        TrainDecoderConfig,
        section,
        "rae.train_decoder",
        encoder=encoder.word,
        data=pictures.folder,
        device=request.device,
    )
    files = trunk_of(config.perceptual, config.perceptual_weight, config.lpips_trunk)
    if config.adversarial is not None and config.adversarial.checkpoint not in (None, "random"):
        files.append(ROOT / config.adversarial.checkpoint)
    about = (pictures.inputs, pictures.places, files)
    stage = add_stage(request, encoder, "train_decoder", config, "pixel decoder", *about)
    decoded = dataclasses.replace(encoder.config, decoder=str(stage.folder / "weights"))
    described = describe(request.graph, decoded, made_by=[*encoder.stages, stage])
    return dataclasses.replace(described, files=encoder.files)


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


def add_reconstruction(
    request: Request, encoder: Encoder, pictures: Pictures, reference: Stage
) -> tuple[Stage, Part]:
    """The stage that reconstructs the test pictures, and its scores."""
    config = stage_config(
        ReconstructConfig,
        request.preset.rae.reconstruct,
        "rae.reconstruct",
        encoder=encoder.word,
        data=pictures.folder,
        limit=reference.config.num_samples,
        device=request.device,
    )
    stage = add_stage(
        request, encoder, "reconstruct", config, "reconstruct", pictures.inputs, pictures.places
    )
    checkpoint = encoder.checkpoint
    part = add_score(
        request, encoder, reference, "reconstruction", stage, RECONSTRUCTIONS, checkpoint=checkpoint
    )
    return stage, part


def add_generator(request: Request, encoder: Encoder, pictures: Pictures, reconstructed: Stage) -> Stage:
    """The stage that trains a generator on frozen tokens.

    Nothing is trained before `reconstructed` is complete: what cannot be decoded then says so at once.
    """
    section, seen = {**request.preset.rae.train, **num_classes(request)}, []
    if pictures.made_by is None:
        live = {"folder": pictures.folder, "encoder": encoder.word}
        section["pictures"] = {**section.get("pictures", {}), **live}
    else:
        seen = [add_tokens(request, encoder, "train", pictures.made_by)]
        section["tokens"] = str(seen[0].folder)
    about = {"seed": request.seed, "device": request.device}
    config = stage_config(TrainDiTConfig, section, "rae.train", **about)
    trained = add_stage(request, encoder, "train", config, "train the DiT", seen, pictures.places)
    request.graph.hold(trained, reconstructed)
    return trained


def add_sweep(request: Request, encoder: Encoder, reference: Stage, trained: Stage) -> Stage:
    """The stage that finds a generator's guidance on the preset's grid, by the distance to the reference's
    real pictures, from noise of another seed than the samples'.

    Raises:
        ConfigError: the reference's judge is none that a sweep knows.
    """
    judge = reference.config
    if judge.extractor.startswith(ENCODER):
        raise ConfigError(f"rae.guided needs a judge of pixels as extractor, not {judge.extractor}")
    section = {**request.preset.rae.guided}
    for name in ("solver", "end", "image_size", "rounding", "precision"):  # as the samples are drawn
        if name in request.preset.rae.generate:
            section.setdefault(name, request.preset.rae.generate[name])
    seen = {"reference": str(reference.folder / FEATURES), "network": judge.extractor}
    config = stage_config(
        SweepConfig,
        section,
        "rae.guided",
        model=str(trained.folder / "weights"),
        encoder=encoder.word,
        judge={**seen, "weights": judge.weights},
        seed=request.seed + _SWEEP_SEED,
        device=request.device,
    )
    return add_stage(request, encoder, "sweep", config, "find the guidance", [trained, reference])


def add_samples(
    request: Request, encoder: Encoder, reference: Stage, trained: Stage, sweep: Stage | None = None
) -> tuple[Stage, Part]:
    """The stage that draws from a generator, with the guidance that a sweep found or without, and its
    scores."""
    guided = {} if sweep is None else {"guidance_from": str(sweep.folder)}
    real = next((stage for stage in trained.inputs if stage.name == "tokens"), None)  # None: encoded live
    config = stage_config(
        GenerateConfig,
        request.preset.rae.generate,
        "rae.generate",
        model=str(trained.folder / "weights"),
        encoder=encoder.word,
        num_samples=reference.config.num_samples,
        seed=request.seed,
        device=request.device,
        keeps_tokens=real is not None,
        **guided,
    )
    label = "generate" if sweep is None else "generate, guided"
    stage = add_stage(request, encoder, "generate", config, label, [trained, *([sweep] if sweep else [])])
    kept = None if real is None else Tokens(folder=stage.folder / TOKENS, made_by=stage, real=real)
    checkpoint = (trained.folder / "weights", *encoder.checkpoint)
    files = {"checkpoint": checkpoint, "tokens": kept}
    files |= {} if sweep is None else {"what": "guided generation"}
    return stage, add_score(request, encoder, reference, "generation", stage, SAMPLES, **files)


def _draw(folder: Path, yard: Yard) -> list[Path]:
    """Figures of what is there: an encoder whose stage did not complete is left out."""
    from harness.metrics.picture_sets import read_class_names, read_labels, read_pictures
    from harness.tables import figures  # here: matplotlib and numpy would delay the command line

    if yard.reference.done() is None:
        return []
    real = yard.reference.folder / PICTURES
    rebuilt = {"original": real, **_complete(yard.reconstructed)}
    sampled = {"real": real, **_complete(yard.generated)}
    return [
        figures.reconstructions(
            folder / "reconstructions.png", {name: read_pictures(path) for name, path in rebuilt.items()}
        ),
        figures.samples(
            folder / "samples.png",
            {name: (read_pictures(path), read_labels(path)) for name, path in sampled.items()},
            read_class_names(real),
        ),
    ]


def _complete(made: Mapping[str, tuple[Stage, str]]) -> dict[str, Path]:
    return {name: stage.folder / file for name, (stage, file) in made.items() if stage.done() is not None}
