"""Understanding: frozen tokens -> projector (stage 1) -> projector and language model (stage 2) -> lmms-eval.

scenes -> tokens of the LLaVA pictures -> llava_align -> llava_instruct -> llava_evaluate     for each encoder

With pictures of one's own, their captions stand in for Scenes: they are what the model learns to say, and of
the held-out ones it is asked which caption is whose.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from encoder.runtime.config import ROOT, choose
from harness.config import stage_config
from harness.encoders import Encoder
from harness.running.stages import Stage
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import OWN_CAPTIONS, add_captions, add_scenes, add_tokens
from harness.tables.result_files import Part, Row
from llava_bridge.config import EvaluateConfig, LlavaConfig

CHANCE = 25.0  # % of Scenes-SEED's four options
DIMENSION = "Scenes-SEED/"
OWN_KEYS = ("Own-Captions",)


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    if request.preset.own_data:
        data, keys = add_captions(request), OWN_KEYS
    else:
        data, keys = add_scenes(request), tuple(key for key in request.suite.keys if key not in OWN_KEYS)
    rows = [_row(request, encoder, data, keys) for encoder in request.encoders]
    return SuitePlan(suite=request.suite, rows=rows, draw=_draw)


def _row(request: Request, encoder: Encoder, data: Stage, keys: tuple[str, ...]) -> Row:
    return Row(
        encoder=encoder.name,
        kind="blind" if encoder.is_blind else "measured",
        source=_source(request, encoder),
        parts=(add_answers(request, encoder, data, keys),),
        undefined={},
    )


def _source(request: Request, encoder: Encoder) -> str:
    """Where the tokens come from, and how many there are left where their grid is resized."""
    resized = request.preset.llava.align.get("num_image_tokens")
    return encoder.source("understanding") + (f", resized to {resized} tokens" if resized else "")


def add_answers(request: Request, encoder: Encoder, data: Stage, keys: tuple[str, ...]) -> Part:
    """The stages from the frozen encoder to its scored answers about `data`, Scenes or one's own captions."""
    trained = _train(request, encoder, data)
    sections = request.preset.llava
    asked = {OWN_CAPTIONS: f"lmms/{OWN_CAPTIONS}.parquet"} if data.name == OWN_CAPTIONS else sections.tasks
    known = _tasks_of(ROOT / sections.task_dir)
    tasks = {choose(known, task, "task"): str(data.folder / path) for task, path in asked.items()}
    config = stage_config(
        EvaluateConfig,
        sections.evaluate,
        "llava.evaluate",
        model=str(trained.folder / "weights"),
        tasks=tasks,
        task_dir=sections.task_dir,
        device=request.device,
        seed=request.seed,
    )
    evaluated = request.graph.add(
        "llava_evaluate",
        "llava_bridge.evaluate",
        config,
        label=f"{encoder.name}: answer and score",
        inputs=[data, trained, *encoder.stages],
        files=[ROOT / sections.task_dir, *encoder.files],
        **request.estimates("llava_evaluate", "llava_evaluate", of_language_model=True),
    )
    return Part(
        stage=evaluated,
        keys=keys,
        checkpoint=(trained.folder / "weights",),
        data=tuple(data.folder / path for path in asked.values()),
        answers=evaluated.folder / "samples.jsonl",
    )


def _train(request: Request, encoder: Encoder, data: Stage) -> Stage:
    """Both stages of LLaVA-1.5; returns the second."""
    sections = request.preset.llava
    tokens = add_tokens(request, encoder, "llava", data)
    features = encoder.config.features.understanding
    if request.foundation is None:
        previous, files, made = sections.language_model, [ROOT / sections.language_model], []
    else:
        made = [request.foundation.language_model]
        previous, files = str(made[0].folder / "weights"), []
    previous_inputs = [data, tokens, *made]
    for number, name, records in ((1, "align", "pretrain"), (2, "instruct", "instruct")):
        config = stage_config(
            LlavaConfig,
            getattr(sections, name),
            f"llava.{name}",
            stage=number,
            encoder=encoder.word,
            features=features,
            data=[str(data.folder / "llava" / f"{records}.json")],
            tokens=str(tokens.folder),
            init=previous,
            seed=request.seed,
        )
        stage = request.graph.add(
            f"llava_{name}",
            "llava_bridge.train",
            config,
            label=f"{encoder.name}: LLaVA stage {number}",
            inputs=[*previous_inputs, *encoder.stages],
            files=[*files, *_own_files(config.deepspeed), *encoder.files],
            **request.estimates(f"llava_{name}", f"llava_{name}", of_language_model=True),
        )
        previous, previous_inputs = str(stage.folder / "weights"), [data, tokens, stage]
    return stage


def _tasks_of(folder: Path) -> dict[str, str]:
    """The names that lmms-eval's YAML files in a folder give themselves.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"llava.task_dir: no such folder: {folder}")
    texts = [path.read_text() for path in folder.glob("*.yaml")]
    return {name: name for text in texts for name in re.findall(r"^task: *(\S+)", text, re.MULTILINE)}


def _own_files(deepspeed: str | None) -> list[Path]:
    return [ROOT / deepspeed] if deepspeed is not None else []


def _draw(folder: Path, board: Mapping) -> list[Path]:
    rows = [row for row in board["rows"] if row["kind"] != "published" and row["metrics"]]
    keys = list(dict.fromkeys(key for row in rows for key in row["metrics"] if key.startswith(DIMENSION)))
    if not keys:
        return []
    from harness.tables import figures  # here: matplotlib would delay the command line

    return [
        figures.dots(
            folder / "seed_dimensions.png", rows, keys, chance=CHANCE, title="Scenes-SEED by question"
        )
    ]
