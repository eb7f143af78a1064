"""Generation: what can be decoded from frozen tokens, and what can be generated as such tokens.

scenes -> reference (two disjoint real sets; the floor)
scenes -> reconstruct -> score                                        for each encoder
scenes -> tokens of test pictures -> decode -> score                  for each encoder: its ceiling
scenes -> tokens of the train pictures -> dit -> generate -> score    for each encoder
On real sources ImageNet takes Scenes' place, and the DiT sees its tokens live. An encoder whose config says
`decoder: train` gets a pixel decoder first, on the same pictures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from encoder.runtime.config import ConfigError
from harness.config import stage_config
from harness.encoders import Encoder
from harness.metrics.config import (
    ENCODER,
    FEATURES,
    PICTURES,
)
from harness.running.stages import Stage
from harness.suites.ceilings import CEILING, RECONSTRUCTIONS, add_ceiling, ceiling_says
from harness.suites.decoders import with_decoder
from harness.suites.picture_sets import PictureSet, find_picture_sets
from harness.suites.request import Request, SuitePlan
from harness.suites.scoring import Tokens, add_score, add_stage
from harness.suites.shared import (
    Pictures,
    add_tokens,
    num_classes,
)
from harness.suites.sizes import check_sizes, says_how_small
from harness.tables.result_files import Part, Row
from rae_bridge.config import (
    GenerateConfig,
    ReconstructConfig,
    SweepConfig,
    TrainDiTConfig,
)

SAMPLES = "samples.npz"
TOKENS = "tokens"  # folder of the samples' tokens, below their stage's
FLOOR = "real vs real"
GUIDED_REASON = "guidance changes nothing in what is reconstructed: see the row without"
FLOOR_REASON = "the two sets hold different pictures: nothing is reconstructed"
_SWEEP_SEED = 1_000_000  # more than the samples'
BLIND_REASON = "this encoder sees nothing: there is nothing to decode"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    picture_sets = find_picture_sets(request)
    rows = []
    for encoder in request.encoders:
        rows += (
            [_blind_row(encoder, picture_sets)]
            if encoder.is_blind
            else _rows_of(request, encoder, picture_sets)
        )
    rows.append(_floor_row(picture_sets, rows))
    main = picture_sets[0]
    return SuitePlan(
        suite=request.suite,
        rows=rows,
        draw=lambda folder, board: _draw(folder, main),
        check=lambda: [
            check_sizes(request, picture_set.pictures.made_by, picture_set.reference.config)
            for picture_set in picture_sets
        ],
    )


def _blind_row(encoder: Encoder, picture_sets: Sequence[PictureSet]) -> Row:
    keys = [key for picture_set in picture_sets for key in picture_set.keys("reconstruction", "generation")]
    return Row(
        encoder=encoder.name,
        kind="blind",
        source=encoder.source("generation"),
        parts=(),
        undefined=dict.fromkeys(keys, BLIND_REASON),
    )


def _floor_row(picture_sets: Sequence[PictureSet], rows: Sequence[Row]) -> Row:
    """Real pictures against real pictures; `rows`: the others."""
    parts = []
    for picture_set in picture_sets:
        data = (picture_set.reference.folder / PICTURES,)
        parts.append(Part(stage=picture_set.reference, keys=tuple(picture_set.keys("generation")), data=data))
    keys = [key for picture_set in picture_sets for key in picture_set.keys("reconstruction")]
    keys += [key for row in rows for part in row.parts for key in part.keys if key.startswith("LPIPS")]
    return Row(
        encoder=FLOOR,
        kind="floor",
        source=f"two disjoint sets of real test pictures{says_how_small(picture_sets[0].reference.config)}",
        parts=tuple(parts),
        undefined=dict.fromkeys(keys, FLOOR_REASON),
    )


def _rows_of(request: Request, encoder: Encoder, picture_sets: Sequence[PictureSet]) -> list[Row]:
    """What an encoder's generator draws, with guidance where that is asked for, and what a perfect one
    would."""
    name, encoder = encoder.name, with_decoder(request, encoder, picture_sets[0].pictures)
    plain, guided, ceiling, rebuilt = [], [], [], []
    note = request.graph.note
    for picture_set in picture_sets:
        reference, request.graph.note = picture_set.reference, note + picture_set.note
        reconstructed, part = add_reconstruction(request, encoder, picture_set.pictures, reference)
        rebuilt += part.keys
        trained = add_generator(request, encoder, picture_set.pictures, reconstructed)
        losses = Part(stage=trained, keys=(), checkpoint=(trained.folder / "weights",))
        generated, sampled = add_samples(request, encoder, reference, trained)
        plain += [part, sampled, *([] if reference.config.prefix else [losses])]
        decoded, file, part = add_ceiling(request, encoder, picture_set.pictures, reference, reconstructed)
        ceiling.append(part)
        picture_set.reconstructed[name] = (reconstructed, RECONSTRUCTIONS)
        picture_set.generated[name] = (generated, SAMPLES)
        if request.preset.rae.guided is not None and not reference.config.prefix:
            sweep = add_sweep(request, encoder, picture_set.validation, trained)
            generated, sampled = add_samples(request, encoder, reference, trained, sweep)
            guided.append(sampled)
            picture_set.generated[f"{name}, guided"] = (generated, SAMPLES)
        picture_set.generated[f"{name}, {CEILING}"] = (decoded, file)
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
    what, reason = ceiling_says(picture_sets[0].reference)
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


def _draw(folder: Path, picture_set: PictureSet) -> list[Path]:
    """Figures of what is there: an encoder whose stage did not complete is left out."""
    from harness.metrics.picture_sets import read_class_names, read_labels, read_pictures
    from harness.tables import figures  # here: matplotlib and numpy would delay the command line

    if picture_set.reference.done() is None:
        return []
    real = picture_set.reference.folder / PICTURES
    rebuilt = {"original": real, **_complete(picture_set.reconstructed)}
    sampled = {"real": real, **_complete(picture_set.generated)}
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
