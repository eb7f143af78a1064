"""Generation: what can be decoded from frozen tokens, and what can be generated as such tokens.

scenes -> reference (two disjoint real sets; the floor)
scenes -> reconstruct -> score                                        for each encoder
scenes -> tokens of the train pictures -> dit -> generate -> score    for each encoder
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from harness.config import stage_config
from harness.encoders import Encoder
from harness.metrics.config import PICTURES, ReferenceConfig, ScoreConfig
from harness.results import Part, Row
from harness.stages import Stage
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import add_scenes, add_tokens
from rae_bridge.config import GenerateConfig, ReconstructConfig, TrainDiTConfig

KEYS = {
    "reconstruction": ("rFD-lite0", "PSNR", "SSIM"),
    "generation": ("gFD-lite0", "KID-lite0", "precision-lite0", "recall-lite0", "IS-lite0"),
}
RECONSTRUCTIONS, SAMPLES = "reconstructions.npz", "samples.npz"
FLOOR = "real vs real"
FLOOR_REASON = "the two sets hold different pictures: nothing is reconstructed"
BLIND_REASON = "this encoder sees nothing: there is nothing to decode"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    scenes = add_scenes(request)
    config = stage_config(ReferenceConfig, request.preset.reference, "reference", data=str(scenes.folder))
    reference = request.graph.add(
        "reference",
        "harness.metrics.reference",
        config,
        label="real pictures and the floor",
        inputs=[scenes],
        seconds=request.seconds("reference"),
    )
    rows, reconstructed, generated = [], {}, {}
    for encoder in request.encoders:
        if encoder.is_blind:
            reasons = dict.fromkeys(request.suite.keys, BLIND_REASON)
            rows.append(
                Row(
                    encoder=encoder.name,
                    kind="blind",
                    source=encoder.source("generation"),
                    parts=(),
                    undefined=reasons,
                )
            )
            continue
        name = encoder.name
        reconstructed[name], generated[name], trained = _stages(request, encoder, scenes, reference)
        score = partial(_score, request, encoder, reference)
        parts = (
            score("reconstruction", reconstructed[name], RECONSTRUCTIONS, checkpoint=encoder.files),
            score(
                "generation",
                generated[name],
                SAMPLES,
                checkpoint=(trained.folder / "weights", *encoder.files),
            ),
        )
        rows.append(
            Row(encoder=name, kind="measured", source=encoder.source("generation"), parts=parts, undefined={})
        )
    floor = Part(stage=reference, keys=KEYS["generation"], data=(reference.folder / PICTURES,))
    rows.append(
        Row(
            encoder=FLOOR,
            kind="floor",
            source="two disjoint sets of real test pictures",
            parts=(floor,),
            undefined=dict.fromkeys(KEYS["reconstruction"], FLOOR_REASON),
        )
    )
    return SuitePlan(
        suite=request.suite,
        rows=rows,
        draw=lambda folder, board: _draw(folder, reference, reconstructed, generated),
    )


def _stages(
    request: Request, encoder: Encoder, scenes: Stage, reference: Stage
) -> tuple[Stage, Stage, Stage]:
    """The stages that reconstruct and generate pictures, and the one that trains the generator."""
    sections, seed, device = request.preset.rae, request.seed, request.device
    num_samples = reference.config.num_samples
    add = partial(_add, request, encoder)
    config = stage_config(
        ReconstructConfig,
        sections.reconstruct,
        "rae.reconstruct",
        encoder=encoder.name,
        data=str(scenes.folder),
        limit=num_samples,
        device=device,
    )
    reconstructed = add("reconstruct", config, "reconstruct", [scenes])
    tokens = add_tokens(request, encoder, "train", scenes)
    config = stage_config(
        TrainDiTConfig, sections.train, "rae.train", tokens=str(tokens.folder), seed=seed, device=device
    )
    trained = add("train", config, "train the DiT", [tokens])
    config = stage_config(
        GenerateConfig,
        sections.generate,
        "rae.generate",
        model=str(trained.folder / "weights"),
        encoder=encoder.name,
        num_samples=num_samples,
        seed=seed,
        device=device,
    )
    return reconstructed, add("generate", config, "generate", [trained]), trained


def _add(
    request: Request, encoder: Encoder, module: str, config: object, label: str, inputs: list[Stage]
) -> Stage:
    return request.graph.add(
        f"rae_{module}",
        f"rae_bridge.{module}",
        config,
        label=f"{encoder.name}: {label}",
        inputs=inputs,
        files=encoder.files,
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
    config = stage_config(
        ScoreConfig,
        request.preset.score,
        "score",
        kind=kind,
        pictures=str(pictures.folder / file),
        reference=str(reference.folder),
    )
    stage = request.graph.add(
        "score",
        "harness.metrics.score",
        config,
        label=f"{encoder.name}: score the {kind}",
        inputs=[pictures, reference],
        seconds=request.seconds("score"),
    )
    return Part(stage=stage, keys=KEYS[kind], checkpoint=checkpoint, data=(reference.folder / PICTURES,))


def _draw(
    folder: Path, reference: Stage, reconstructed: Mapping[str, Stage], generated: Mapping[str, Stage]
) -> list[Path]:
    """Figures of what is there: an encoder whose stage did not complete is left out."""
    from harness import figures  # here: matplotlib and numpy would delay the command line
    from harness.metrics.pictures import read_class_names, read_labels, read_pictures

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
