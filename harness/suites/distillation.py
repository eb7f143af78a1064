"""Distillation: what a student of a few steps loses to its teacher's many, and what each method brings.

scenes -> tokens -> dit, the teacher -> generate -> score                            at many steps and at few
                    dit -> distill (stage 1 -> stage 2) -> generate -> score, cost   for each student
TMD's inner flow, and its baselines by the same code: MeanFlow and DMD2 of the whole network. A student learns
the grid of the most steps asked for; the grids of its divisors lie in it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.runtime.config import ROOT, ConfigError, choose
from harness.config import merged, stage_config
from harness.encoders import Encoder
from harness.metrics.config import PICTURES, TOKEN_DISTANCE, keys_of
from harness.running.stages import Stage
from harness.sections import DistillationSections, RaeSections
from harness.suites.ceilings import CEILING, add_ceiling, ceiling_says
from harness.suites.decoders import with_decoder
from harness.suites.generation import FLOOR, SAMPLES, add_generator, add_samples
from harness.suites.picture_sets import add_reference
from harness.suites.request import Request, SuitePlan
from harness.suites.shared import Pictures, find_pictures
from harness.suites.sizes import check_sizes, says_how_small
from harness.tables.result_files import Part, Row
from rae_bridge.distillation.config import CostConfig, DistillConfig

METHODS, ABLATIONS = "methods", "ablations"  # the suite's studies
TEACHER, FIRST, SECOND = "teacher", "tmd_1", "tmd_2"
COST_KEYS = ("steps", "nfe", "nfe/flops", "gflops", "gflops/decoder", "seconds", "times faster")
_OTHERS = ("end", "solver")  # of samples elsewhere: a student knows Euler to 0 alone, so here all rows do
_NOT_GENERATED = "real pictures are not generated"
_WHOLE = {"meanflow": 1, "dmd2": 2}  # method -> its one stage


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row before it has stages: which model is drawn from, in how many steps."""

    method: str  # of the row's name
    model: Stage
    num_steps: int
    num_inner: int
    studies: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.method}/{self.num_steps}x{self.num_inner}"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite.

    Raises:
        ConfigError: the preset has no distillation section, or one that no stage takes.
    """
    sections = request.preset.distillation
    if sections is None:
        raise ConfigError(
            "this preset has no distillation section; suite=distillation is of preset=demo, evening and paper"
        )
    encoder = next((each for each in request.encoders if not each.is_blind), None)  # it is of one teacher
    if encoder is None:  # other suites may have rows for such encoders
        return SuitePlan(suite=request.suite, rows=[], draw=lambda folder, board: [], check=_refuse)
    request = dataclasses.replace(request, preset=_with_teacher(request.preset, sections))
    pictures = find_pictures(request)
    encoder = with_decoder(request, encoder, pictures)
    reference = add_reference(request, pictures, **sections.reference)
    seed = request.seed if sections.teacher_seed is None else sections.teacher_seed
    of_teacher = dataclasses.replace(request, seed=seed)
    teacher = add_generator(of_teacher, encoder, pictures, reference)  # trained once there is a judge
    comparison = Comparison(request, encoder, reference, teacher, sections)
    rows, drawn = [], {}
    for each in [*comparison.of_teacher(), *comparison.of_baselines(), *comparison.of_tmd()]:
        row, drawn[each.label] = comparison.row(each)
        rows.append(row)
    if pictures.made_by is not None:
        rows.append(_ceiling(request, encoder, pictures, reference))
    return SuitePlan(
        suite=request.suite,
        rows=[*rows, _floor(reference, bool(sections.ablations))],
        draw=lambda folder, board: _draw(folder, board, request, reference, drawn, max(sections.steps)),
        check=lambda: check_sizes(request, pictures.made_by, reference.config),
    )


def _refuse() -> None:
    raise ConfigError("suite=distillation needs an encoder that sees: encoders=[ov3-demo]")


def _with_teacher(preset: Any, sections: DistillationSections) -> Any:
    """The preset with the teacher's training laid over `rae`, and the estimate of its time."""
    for key in sections.rae:
        choose({each.name: None for each in dataclasses.fields(RaeSections)}, key, "section of rae")
    changes = {key: merged(getattr(preset.rae, key) or {}, change) for key, change in sections.rae.items()}
    seconds = {"rae_train": preset.seconds.get("rae_train_teacher", 0.0)}
    return dataclasses.replace(
        preset, rae=dataclasses.replace(preset.rae, **changes), seconds=preset.seconds | seconds
    )


@dataclass(frozen=True)
class Comparison:
    """A teacher, and who is to be compared with it."""

    request: Request
    encoder: Encoder
    reference: Stage
    teacher: Stage
    sections: DistillationSections

    def of_teacher(self) -> list[Contender]:
        """The teacher by many Euler steps, and by few."""
        steps = dict.fromkeys([self.sections.teacher_steps, *self.sections.steps])
        about = {"method": TEACHER, "model": self.teacher, "num_inner": 1, "studies": (METHODS,)}
        return [Contender(num_steps=num, **about) for num in steps]

    def of_baselines(self) -> list[Contender]:
        """Students that are the whole network."""
        rows = []
        for method, stage in _WHOLE.items():
            model = self.student(method, f"{method}: distil", {"method": method, "stage": stage})
            about = {"method": method, "model": model, "num_inner": 1, "studies": (METHODS,)}
            rows += [Contender(num_steps=num, **about) for num in self.sections.steps]
        return rows

    def of_tmd(self) -> list[Contender]:
        """TMD, its stage 1 alone at the most steps, and so its ablations, where they are asked for."""
        most, num_inner = max(self.sections.steps), self.sections.inner_steps
        first, second = self.both_stages("tmd", {}, num_inner)
        about = {"num_inner": num_inner, "studies": (METHODS,)}
        rows = [Contender(method="tmd", model=second, num_steps=num, **about) for num in self.sections.steps]
        variants = self.variants()
        if variants:  # which are compared with it
            rows = [
                dataclasses.replace(each, studies=(METHODS, ABLATIONS)) if each.num_steps == most else each
                for each in rows
            ]
        rows.append(Contender(method="tmd, stage 1 alone", model=first, num_steps=most, **about))
        for label, changes in variants.items():
            changes, name = dict(changes), f"tmd, {label}"
            about = {"num_inner": changes.pop("inner_steps", num_inner), "studies": (ABLATIONS,)}
            _, second = self.both_stages(name, changes, about["num_inner"])
            rows.append(Contender(method=name, model=second, num_steps=most, **about))
        return rows

    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """What the asked-for ablations change, by their names in the suite's file."""
        known, asked = self.request.suite.studies[ABLATIONS].variants, self.sections.ablations
        if isinstance(asked, bool):
            return known if asked else {}
        return {label: choose(known, label, "variant in distillation.ablations") for label in asked}

    def both_stages(self, name: str, changes: Mapping[str, Any], num_inner: int) -> tuple[Stage, Stage]:
        """Both of TMD's stages with some values changed. Variants with an equal stage 1 share it."""
        about = {"method": "tmd", "inner_steps": num_inner}
        first = self.student(FIRST, f"{name}: stage 1", {**about, "stage": 1}, changes)
        of_first = {"stage": 2, "student": str(first.folder / "weights")}
        return first, self.student(SECOND, f"{name}: stage 2", {**about, **of_first}, changes, [first])

    def student(
        self,
        name: str,
        label: str,
        filled: Mapping[str, Any],
        changes: Mapping[str, Any] | None = None,
        before: Sequence[Stage] = (),
    ) -> Stage:
        """The stage that distils, from section `name` of the preset's students."""
        request, source = self.request, self.teacher.config
        section = merged(self.sections.students[name], (changes or {}).get(name, {}))
        config = stage_config(
            DistillConfig,
            section,
            f"distillation.students.{name}",
            teacher=str(self.teacher.folder / "weights"),
            tokens=source.tokens,
            pictures=source.pictures,
            steps=max(self.sections.steps),
            seed=request.seed,
            device=request.device,
            **filled,
        )
        return request.graph.add(
            "rae_distill",
            "rae_bridge.distill",
            config,
            label=f"{self.encoder.name}: {label}",
            inputs=[self.teacher, *self.teacher.inputs, *before],
            files=self.encoder.files,
            pictures=[] if source.pictures is None else [ROOT / source.pictures.folder],
            seconds=request.seconds(f"rae_distill_{name}"),
        )

    def row(self, contender: Contender) -> tuple[Row, Stage]:
        """A row of the table, and the stage that draws its pictures."""
        name = f"{self.encoder.name}/{contender.label}"
        encoder = dataclasses.replace(self.encoder, name=name)
        inner = {} if contender.num_inner == 1 else {"inner_steps": contender.num_inner}
        preset = self.request.preset
        drawn = {key: value for key, value in preset.rae.generate.items() if key not in _OTHERS}
        generate = {**drawn, "num_steps": contender.num_steps, **inner}
        few = {"rae_generate": preset.seconds.get("rae_generate_few", 0.0)}
        seconds = preset.seconds | (few if contender.num_steps in self.sections.steps else {})
        preset = dataclasses.replace(
            preset, rae=dataclasses.replace(preset.rae, generate=generate), seconds=seconds
        )
        request = dataclasses.replace(self.request, preset=preset)
        stage, sampled = add_samples(request, encoder, self.reference, contender.model)
        row = Row(
            encoder=name,
            kind="measured",
            source=f"{self.encoder.source('generation')}: {contender.method}",
            parts=(sampled, self._cost(encoder, contender)),
            undefined={},
            groups=dict.fromkeys(contender.studies, contender.label),
        )
        return row, stage

    def _cost(self, encoder: Encoder, contender: Contender) -> Part:
        config = stage_config(
            CostConfig,
            self.sections.cost,
            "distillation.cost",
            model=str(contender.model.folder / "weights"),
            teacher=str(self.teacher.folder / "weights"),
            encoder=encoder.word,
            num_steps=contender.num_steps,
            inner_steps=None if contender.num_inner == 1 else contender.num_inner,
            teacher_steps=self.sections.teacher_steps,
            device=self.request.device,
        )
        stage = self.request.graph.add(
            "rae_cost",
            "rae_bridge.distillation.cost",
            config,
            label=f"{encoder.name}: cost",
            inputs=[*dict.fromkeys([contender.model, self.teacher]), *encoder.stages],
            files=encoder.files,
            seconds=self.request.seconds("rae_cost"),
        )
        return Part(stage=stage, keys=COST_KEYS, checkpoint=(contender.model.folder / "weights",))


def _ceiling(request: Request, encoder: Encoder, pictures: Pictures, reference: Stage) -> Row:
    """What a perfect generator of the encoder's tokens would get; on pictures that are made here."""
    _, _, part = add_ceiling(request, encoder, pictures, reference)
    return Row(
        encoder=CEILING,
        kind="ceiling",
        source=f"{encoder.source('generation')}: {ceiling_says(reference)[0]}",
        parts=(part,),
        undefined=dict.fromkeys(COST_KEYS, _NOT_GENERATED),
        groups={METHODS: CEILING},
    )


def _floor(reference: Stage, is_ablated: bool) -> Row:
    """The least that a generator of as many samples can hope for."""
    keys = keys_of("generation", reference.config)
    return Row(
        encoder=FLOOR,
        kind="floor",
        source=f"two disjoint sets of real test pictures{says_how_small(reference.config)}",
        parts=(Part(stage=reference, keys=keys, data=(reference.folder / PICTURES,)),),
        undefined=dict.fromkeys(COST_KEYS, _NOT_GENERATED),
        groups=dict.fromkeys([METHODS, *([ABLATIONS] if is_ablated else [])], FLOOR),
    )


def _draw(
    folder: Path, board: Mapping, request: Request, reference: Stage, drawn: Mapping[str, Stage], most: int
) -> list[Path]:
    """Quality against cost, and the same noise drawn by every model at the most steps."""
    from harness.metrics.picture_sets import read_class_names, read_labels, read_pictures
    from harness.tables import curves, figures  # here: matplotlib and numpy would delay the command line

    quality = next(key for key in keys_of("generation", reference.config) if key.startswith("gF"))
    recall = [key for key in keys_of("generation", reference.config) if key.startswith("recall")]
    tokens = [TOKEN_DISTANCE] if any(TOKEN_DISTANCE in row["metrics"] for row in board["rows"]) else []
    files = [
        curves.quality_against_cost(
            folder / "quality.png", board["rows"], [quality, *tokens, *recall], "nfe/flops"
        )
    ]
    usual = f"{most}x"
    labels = [label for label in drawn if ", " not in label and label.split("/")[1].startswith(usual)]
    labels = list(dict.fromkeys([next(iter(drawn)), *labels]))  # the teacher's many steps first
    complete = {label: drawn[label].folder / SAMPLES for label in labels if drawn[label].done() is not None}
    if reference.done() is not None and complete:
        real = reference.folder / PICTURES
        sets = {"real": real, **complete}
        pictures = {name: (read_pictures(path), read_labels(path)) for name, path in sets.items()}
        files.append(figures.samples(folder / "samples.png", pictures, read_class_names(real), per_class=3))
    return files
