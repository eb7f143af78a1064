"""Understanding: frozen tokens -> projector (stage 1) -> projector and language model (stage 2) -> lmms-eval.

scenes -> tokens of the LLaVA pictures -> llava_align -> llava_instruct -> llava_evaluate     for each encoder
                                       -> probe                         for each encoder that sees

What is taught and asked is `lessons`: Scenes, captions of one's own (they are what the model learns to say,
and of the held-out ones it is asked which caption is whose), or LLaVA-1.5's data and the public benchmarks,
whose pictures go through the frozen tower at every step.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from encoder.runtime.config import ROOT, choose
from harness.config import stage_config
from harness.encoders import Encoder
from harness.probe.config import ProbeConfig
from harness.running.stages import Stage
from harness.suites.frameworks import Judgement, judgements, llava_1_5
from harness.suites.lessons import Lessons, find_lessons
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import add_tokens, add_views
from harness.tables.result_files import Part, Row
from llava_bridge.config import EvaluateConfig, LlavaConfig

CHANCE = 25.0  # % of Scenes-SEED's four options
DIMENSION = "Scenes-SEED/"
PROBE_REASON = "a probe answers from facts that tasks of one's own do not give"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite."""
    asked = judgements(request.preset.llava)
    rows = []
    for judgement in asked:
        lessons = find_lessons(request, judgement.mix)
        for encoder in request.encoders:
            rows.append(_row(request, encoder, lessons, judgement))
            if not encoder.is_blind and _can_be_probed(request, lessons, judgement):
                rows.append(_probe_row(request, encoder, lessons, judgement))
    return SuitePlan(suite=request.suite, rows=rows, draw=_draw)


def _row(request: Request, encoder: Encoder, lessons: Lessons, judgement: Judgement) -> Row:
    return Row(
        encoder=encoder.name + judgement.suffix,
        kind="blind" if encoder.is_blind else "measured",
        source=_source(encoder, lessons, judgement),
        parts=(add_answers(request, encoder, lessons, judgement),),
        undefined={},
    )


def _can_be_probed(request: Request, lessons: Lessons, judgement: Judgement) -> bool:
    """Whether something is known of the pictures and there are tokens of the row's own to read it from: of
    views only where they are not latents, and where all pictures have as many, as Scenes' do."""
    if lessons.truth is None or not judgement.has_own_tokens:
        return False
    return not judgement.is_next or (
        lessons.truth == "scenes" and request.preset.llava.next.holds == "tokens"
    )


def _probe_row(request: Request, encoder: Encoder, lessons: Lessons, judgement: Judgement) -> Row:
    """What a probe reads from the same tokens: what the bridge could have read, too."""
    tokens = _add_seen(request, encoder, lessons, judgement)
    config = stage_config(
        ProbeConfig,
        request.preset.probe,
        "probe",
        encoder=encoder.word,
        features=encoder.config.features.understanding,
        tokens=str(tokens.folder),
        truth=lessons.truth,
        data=str(lessons.data.folder),
        tasks=lessons.questions["tasks"],
        task_dir=request.preset.llava.task_dir,
        device=request.device,
        seed=request.seed,
    )
    stage = request.graph.add(
        "probe",
        "harness.probe.understanding",
        config,
        label=f"{encoder.name}{judgement.suffix}: what a probe reads",
        inputs=[lessons.data, tokens, *encoder.stages],
        files=[ROOT / config.task_dir, *encoder.files],
        **request.estimates("probe", "probe"),
    )
    known = {"scenes": "the facts of scenes", "captions": "the words of captions"}[lessons.truth]
    return Row(
        encoder=f"{encoder.name}{judgement.suffix}, probe",
        kind="probe",
        source=f"{', '.join([encoder.source('understanding'), *judgement.says])}: {known}, linear or a small "
        "network",
        parts=(Part(stage=stage, keys=lessons.keys, checkpoint=encoder.checkpoint, data=lessons.asked),),
        undefined=dict.fromkeys(lessons.custom_keys, PROBE_REASON),
    )


def _source(encoder: Encoder, lessons: Lessons, judgement: Judgement) -> str:
    """Where the tokens come from, what the framework makes of them, and who reads them."""
    words = [encoder.source("understanding"), *judgement.says]
    return ", ".join([*words, *(f"{what}: {name}" for what, name in lessons.places.items())])


def add_answers(
    request: Request, encoder: Encoder, lessons: Lessons, judgement: Judgement | None = None
) -> Part:
    """The stages from the frozen encoder to its scored answers. judgement: None for LLaVA-1.5's."""
    judgement = judgement or llava_1_5(request.preset.llava)
    trained = _train(request, encoder, lessons, judgement)
    sections = request.preset.llava
    known = _tasks_of(ROOT / sections.task_dir)
    for task in lessons.questions.get("tasks", {}):
        choose(known, task, "task")
    config = stage_config(
        EvaluateConfig,
        judgement.evaluate,
        "llava.evaluate",
        **lessons.questions,
        model=str(trained.folder / "weights"),
        task_dir=sections.task_dir,
        device=request.device,
        seed=request.seed,
    )
    evaluated = request.graph.add(
        "llava_evaluate",
        "llava_bridge.evaluate",
        config,
        label=f"{encoder.name}{judgement.suffix}: answer and score",
        inputs=[*lessons.inputs, trained, *encoder.stages],
        files=[ROOT / sections.task_dir, *lessons.asked_files, *encoder.files],
        data_sets=lessons.data_sets,
        **request.estimates("llava_evaluate", "llava_evaluate", of_language_model=True),
    )
    return Part(
        stage=evaluated,
        keys=(*lessons.keys, *lessons.custom_keys),
        checkpoint=(trained.folder / "weights",),
        data=(*lessons.asked, *lessons.custom),
        answers=evaluated.folder / "samples.jsonl" if lessons.has_pairs else None,
    )


def _train(request: Request, encoder: Encoder, lessons: Lessons, judgement: Judgement) -> Stage:
    """Both training stages; returns the second."""
    sections = request.preset.llava
    seen, shared = {}, [*lessons.inputs]
    if lessons.data is not None:  # the pictures that are seen again and again are encoded once
        tokens = _add_seen(request, encoder, lessons, judgement)
        seen, shared = {"tokens": str(tokens.folder)}, [*shared, tokens]
    previous, files, made = lessons.language_model or sections.language_model, [*lessons.files], []
    if request.foundation is not None:
        made = [request.foundation.language_model]
        previous = str(made[0].folder / "weights")
    elif lessons.language_model is None:
        files.append(ROOT / previous)
    for number, name in ((1, "align"), (2, "instruct")):
        config = stage_config(
            LlavaConfig,
            getattr(judgement, name),
            f"llava.{name}",
            **lessons.stages[name],
            **seen,
            stage=number,
            encoder=encoder.word,
            features=encoder.config.features.understanding,
            init=previous,
            seed=request.seed,
        )
        stage = request.graph.add(
            f"llava_{name}",
            "llava_bridge.train",
            config,
            label=f"{encoder.name}{judgement.suffix}: LLaVA stage {number}",
            inputs=[*shared, *made, *encoder.stages],
            files=[*files, *_own_files(config.deepspeed), *encoder.files],
            pictures=[lessons.pictures[name]] if name in lessons.pictures else [],
            **request.estimates(f"llava_{name}", f"llava_{name}", of_language_model=True),
        )
        previous, made = str(stage.folder / "weights"), [stage]
    return stage


def _add_seen(request: Request, encoder: Encoder, lessons: Lessons, judgement: Judgement) -> Stage:
    """The frozen tokens that the framework's language model learns from: of whole pictures, or of views."""
    if judgement.is_next:
        return add_views(request, encoder, lessons.data)
    return add_tokens(request, encoder, "llava", lessons.data)


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
