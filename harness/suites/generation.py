"""Generation: what can be decoded from frozen tokens, and what can be generated as such tokens.

scenes -> reference (two disjoint real sets; the floor)
scenes -> reconstruct -> score                                        for each encoder
scenes -> tokens of the train pictures -> dit -> generate -> score    for each encoder
On real sources ImageNet takes Scenes' place, and the DiT sees its tokens live. An encoder whose config says
`decoder: train` gets a pixel decoder first, on the same pictures.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from encoder.metrics import weights
from encoder.runtime.config import ROOT, ConfigError
from harness.config import stage_config
from harness.encoders import Encoder, resolve_encoder
from harness.metrics.config import (
    ENCODER,
    FEATURES,
    INCEPTION,
    PICTURES,
    ReferenceConfig,
    ScoreConfig,
    keys_of,
    lpips_judge,
)
from harness.running.stages import Stage
from harness.suites.released import describe
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import Pictures, add_tokens, find_pictures, num_classes, trunk_to_train_with
from harness.suites.sizes import add_count, check_sizes, says_how_small
from harness.tables.result_files import Part, Row
from rae_bridge.config import (
    GenerateConfig,
    ReconstructConfig,
    SweepConfig,
    TrainDecoderConfig,
    TrainDiTConfig,
)

RECONSTRUCTIONS, SAMPLES = "reconstructions.npz", "samples.npz"
TRAIN = "train"  # as an encoder's decoder: a pixel decoder is trained for it
FLOOR = "real vs real"
GUIDED_REASON = "guidance changes nothing in what is reconstructed: see the row without"
FLOOR_REASON = "the two sets hold different pictures: nothing is reconstructed"
_SWEEP_SEED = 1_000_000  # more than the samples'
BLIND_REASON = "this encoder sees nothing: there is nothing to decode"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    pictures = find_pictures(request)
    reference = add_reference(request, pictures)
    if pictures.made_by is not None:
        add_count(request, pictures.made_by, reference.config)
    rows, reconstructed, generated = [], {}, {}
    for encoder in request.encoders:
        if encoder.is_blind:
            keys = [*keys_of("reconstruction", reference.config), *keys_of("generation", reference.config)]
            rows.append(
                Row(
                    encoder=encoder.name,
                    kind="blind",
                    source=encoder.source("generation"),
                    parts=(),
                    undefined=dict.fromkeys(keys, BLIND_REASON),
                )
            )
            continue
        name, encoder = encoder.name, _with_decoder(request, encoder, pictures)
        reconstructed[name], rebuilt = add_reconstruction(request, encoder, pictures, reference)
        trained = add_generator(request, encoder, pictures, reconstructed[name])
        generated[name], sampled = add_samples(request, encoder, reference, trained)
        rows.append(
            Row(
                encoder=name,
                kind="measured",
                source=encoder.source("generation"),
                parts=(rebuilt, sampled),
                undefined={},
            )
        )
        if request.preset.rae.guided is not None:
            sweep = add_sweep(request, encoder, reference, trained)
            guided = f"{name}, guided"
            generated[guided], sampled = add_samples(request, encoder, reference, trained, sweep)
            undefined = dict.fromkeys(rebuilt.keys, GUIDED_REASON)
            source = f"{encoder.source('generation')}, scale and interval of the least distance on a grid"
            row = {"encoder": guided, "kind": "measured", "source": source}
            rows.append(Row(**row, parts=(sampled,), undefined=undefined))
    keys = keys_of("generation", reference.config)
    floor = Part(stage=reference, keys=keys, data=(reference.folder / PICTURES,))
    rows.append(
        Row(
            encoder=FLOOR,
            kind="floor",
            source=f"two disjoint sets of real test pictures{says_how_small(reference.config)}",
            parts=(floor,),
            undefined=dict.fromkeys(keys_of("reconstruction", reference.config), FLOOR_REASON),
        )
    )
    return SuitePlan(
        suite=request.suite,
        rows=rows,
        draw=lambda folder, board: _draw(folder, reference, reconstructed, generated),
        check=lambda: check_sizes(request, pictures.made_by, reference.config),
    )


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
    stage = _add(request, encoder, "train_decoder", config, "pixel decoder", pictures.inputs, pictures.places)
    decoded = dataclasses.replace(encoder.config, decoder=str(stage.folder / "weights"))
    described = describe(request.graph, decoded, made_by=[*encoder.stages, stage])
    return dataclasses.replace(described, files=encoder.files)


def add_reference(request: Request, pictures: Pictures) -> Stage:
    """The real pictures, and the judge with all the files that it is made of.

    Raises:
        ConfigError: the judge is one of the encoders that are to be judged.
        FileNotFoundError: a file of it is not there.
    """
    section = request.preset.reference
    filled = {"data": pictures.folder, "device": request.device}
    if request.places is not None:
        filled |= {"weights": str(request.places["inception"]), "statistics": str(request.places["adm"])}
    config = stage_config(ReferenceConfig, section, "reference", **filled)
    files = [ROOT / config.statistics] if config.statistics else []
    if config.extractor == INCEPTION:
        files += _present(weights.find(weights.INCEPTION, config.weights))
    elif config.extractor.startswith(ENCODER):
        judge = resolve_encoder(config.extractor.removeprefix(ENCODER))
        if judge.name in [encoder.name for encoder in request.encoders]:
            raise ConfigError(f"{judge.name} is both a row and the judge; nothing may judge itself")
        files += judge.files
    return request.graph.add(
        "reference",
        "harness.metrics.reference",
        config,
        label="real pictures and the floor",
        inputs=pictures.inputs,
        files=files,
        pictures=pictures.places,
        seconds=request.seconds("reference"),
    )


def _present(path: Path) -> list[Path]:
    """A file that is there; one that is yet to be downloaded is checked by its published hash instead."""
    return [path] if path.is_file() else []


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
    stage = _add(request, encoder, "reconstruct", config, "reconstruct", pictures.inputs, pictures.places)
    checkpoint = encoder.checkpoint
    part = _score(
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
    trained = _add(request, encoder, "train", config, "train the DiT", seen, pictures.places)
    if seen:
        request.graph.guard(seen[0], reconstructed)
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
    return _add(request, encoder, "sweep", config, "find the guidance", [trained, reference])


def add_samples(
    request: Request, encoder: Encoder, reference: Stage, trained: Stage, sweep: Stage | None = None
) -> tuple[Stage, Part]:
    """The stage that draws from a generator, with the guidance that a sweep found or without, and its
    scores."""
    guided = {} if sweep is None else {"guidance_from": str(sweep.folder)}
    config = stage_config(
        GenerateConfig,
        request.preset.rae.generate,
        "rae.generate",
        model=str(trained.folder / "weights"),
        encoder=encoder.word,
        num_samples=reference.config.num_samples,
        seed=request.seed,
        device=request.device,
        **guided,
    )
    label = "generate" if sweep is None else "generate, guided"
    stage = _add(request, encoder, "generate", config, label, [trained, *([sweep] if sweep else [])])
    checkpoint = (trained.folder / "weights", *encoder.checkpoint)
    return stage, _score(request, encoder, reference, "generation", stage, SAMPLES, checkpoint=checkpoint)


def _add(
    request: Request,
    encoder: Encoder,
    module: str,
    config: object,
    label: str,
    inputs: list[Stage],
    places: tuple[Path, ...] = (),
) -> Stage:
    return request.graph.add(
        f"rae_{module}",
        f"rae_bridge.{module}",
        config,
        label=f"{encoder.name}: {label}",
        inputs=[*inputs, *encoder.stages],
        files=encoder.files,
        pictures=places,
        seconds=request.seconds(f"rae_{module}"),
    )


def _score(
    request: Request,
    encoder: Encoder,
    reference: Stage,
    kind: str,
    pictures: Stage,
    file: str,
    *,
    checkpoint: tuple[Path, ...],
) -> Part:
    trunk_of_lpips = {} if request.places is None else {"lpips": str(request.places["lpips"])}
    config = stage_config(
        ScoreConfig,
        {**trunk_of_lpips, **request.preset.score},
        "score",
        kind=kind,
        pictures=str(pictures.folder / file),
        reference=str(reference.folder),
        device=request.device,
    )
    lpips = lpips_judge(config)
    trunk = _present(weights.find(weights.TRUNKS[config.lpips_net], config.lpips)) if lpips else []
    stage = request.graph.add(
        "score",
        "harness.metrics.score",
        config,
        label=f"{encoder.name}: score the {kind}",
        inputs=[pictures, reference],
        files=trunk,
        seconds=request.seconds("score"),
    )
    keys = keys_of(kind, reference.config, lpips)
    return Part(stage=stage, keys=keys, checkpoint=checkpoint, data=(reference.folder / PICTURES,))


def _draw(
    folder: Path, reference: Stage, reconstructed: Mapping[str, Stage], generated: Mapping[str, Stage]
) -> list[Path]:
    """Figures of what is there: an encoder whose stage did not complete is left out."""
    from harness.metrics.picture_sets import read_class_names, read_labels, read_pictures
    from harness.tables import figures  # here: matplotlib and numpy would delay the command line

    if reference.done() is None:
        return []
    real = reference.folder / PICTURES
    rebuilt = {"original": real, **_complete(reconstructed, RECONSTRUCTIONS)}
    sampled = {"real": real, **_complete(generated, SAMPLES)}
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


def _complete(stages: Mapping[str, Stage], file: str) -> dict[str, Path]:
    return {name: stage.folder / file for name, stage in stages.items() if stage.done() is not None}
