"""Text to picture: does the rank of encoders hold when words, not classes, guide what is drawn?

scenes -> captions (one frozen text encoder for every row)
scenes -> tokens, captions -> dit -> generate -> scene score, distances        for each encoder
                           dit -> choose guidance -> generate -> ...           its guided row
prompts of SceneEval -> rebuild -> scene score                                 for each encoder: its ceiling
judge of SceneEval, prompts                                                    once, for all
The row `pooled` is told the text's one vector alone; a row `own text` the encoder's own text tower's states.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder.data.options import ScenesConfig
from encoder.runtime.config import ROOT, ConfigError
from harness.config import stage_config
from harness.encoders import Encoder
from harness.running.stages import Stage
from harness.scene_eval import config as scene_eval
from harness.sections import TextToImageSections
from harness.suites.request import Request, SuitePlan
from harness.suites.sizes import check_sizes, says_how_small
from harness.suites.text_stages import SAMPLES, TextStages
from harness.tables.result_files import Part, Row

NO_DISTANCE = "SceneEval's prompts are of other scenes than the captions whose pictures are compared"
NO_PICTURES = "chance is of truths: nothing is drawn"


def plan(request: Request) -> SuitePlan:
    """Stages and rows of this suite.

    Raises:
        ConfigError: the preset has no such section or other pictures than Scenes, an encoder cannot decode,
            or one under test would tell the texts or judge.
    """
    sections = request.preset.text2image
    if sections is None:
        raise ConfigError("this preset has no text2image section; suite=text2image runs with preset=demo")
    if request.places is not None or request.preset.own_data:
        raise ConfigError("suite=text2image judges by the truth of Scenes: it takes no other pictures")
    encoders = [encoder for encoder in request.encoders if not encoder.is_blind]
    check_neutral(sections, encoders)
    if not encoders or any(encoder.config.decoder == "train" for encoder in encoders):
        return SuitePlan(suite=request.suite, rows=[], draw=lambda folder, board: [], check=_refuse)
    stages = TextStages.begin(request, sections)
    comparison = Comparison(stages)
    rows = [row for encoder in encoders for row in comparison.rows_of(encoder)]
    subsets = {"kernel_subset_size": stages.reference.config.kernel_subset_size}  # of its distances too
    preset = dataclasses.replace(request.preset, score={**request.preset.score, **subsets})
    sized = dataclasses.replace(request, preset=preset)
    return SuitePlan(
        suite=request.suite,
        rows=[*rows, *comparison.limits()],
        draw=lambda folder, board: comparison.draw(folder, board),
        check=lambda: check_sizes(sized, stages.scenes, stages.reference.config),
    )


def _refuse() -> None:
    raise ConfigError("suite=text2image needs encoders that see and have a decoder: encoders=[ov3-demo]")


def check_neutral(sections: TextToImageSections, encoders: Sequence[Encoder]) -> None:
    """Raises: ConfigError if the text encoder of all rows, or the CLIP that judges, is an encoder under test,
    or a row's own text is of an encoder that is none."""
    for name, place in (("text_encoder", sections.text_encoder), ("clip", sections.clip)):
        for encoder in encoders:
            source = encoder.config.source.partition(":")[2] or encoder.config.source
            if place is not None and (ROOT / source).resolve() == (ROOT / place).resolve():
                raise ConfigError(
                    f"text2image.{name}={place} is the encoder {encoder.name}, which is under test: name "
                    "another (text2image.own_text tells an encoder its own tower's texts)"
                )
    unknown = set(sections.own_text) - {encoder.name for encoder in encoders}
    if unknown:
        raise ConfigError(f"text2image.own_text names {min(unknown)}, which is no encoder of this run")


@dataclass(frozen=True)
class Comparison:
    """The rows over their stages."""

    stages: TextStages
    drawn: dict[str, Stage] = dataclasses.field(default_factory=dict)  # row -> its pictures of the prompts

    def rows_of(self, encoder: Encoder) -> list[Row]:
        """An encoder's rows: told tokens, one vector, its own tower's tokens; without guidance and with the
        best; after fewer steps; and its ceiling."""
        ceiling, limit = self.ceiling(encoder)
        told = [("", {}, self.stages.sections.text_encoder)]
        if self.stages.sections.pooled is not None:
            told.append((", pooled", {"conditioning": "pooled", **self.stages.sections.pooled}, told[0][2]))
        if own := self.stages.sections.own_text.get(encoder.name):
            told.append((", own text", {}, own))
        rows = []
        for what, changes, text_encoder in told:
            trained = self.stages.trained(encoder, what, changes, text_encoder)
            models = {what: trained.folder / "weights"}
            for steps in self.stages.sections.curve if not what else []:
                models[f", {steps} steps"] = trained.folder / "kept" / f"step_{steps:08}"
            for name, model in models.items():
                is_whole = name == what
                rows.append(self.row(encoder, name, trained, model, text_encoder, ceiling, is_whole=is_whole))
            choice = self.stages.choice(encoder, what, trained, text_encoder)
            model = models[what]
            rows.append(self.row(encoder, f"{what}, guided", trained, model, text_encoder, ceiling, choice))
        return [*rows, limit]

    def row(
        self,
        encoder: Encoder,
        what: str,
        trained: Stage,
        model: Path,
        text_encoder: str,
        ceiling: Stage,
        choice: Stage | None = None,
        *,
        is_whole: bool = True,
    ) -> Row:
        """What a model draws of SceneEval's prompts, and (is_whole: trained to the end) of captions."""
        stages, inputs, guided = self.stages, [trained], {}
        if choice is not None:
            inputs, guided = [trained, choice], {"guidance_from": str(choice.folder)}
        drawn = stages.generated(
            encoder, f"{what}: draw the prompts", model, stages.prompts.folder / scene_eval.TEST, inputs,
            text_encoder, **guided,
        )  # fmt: skip
        name = f"{encoder.name}{what}"
        self.drawn[name] = drawn
        checkpoint = (model, *encoder.checkpoint)
        parts, undefined = [stages.scored(name, drawn, SAMPLES, checkpoint, ceiling)], {}
        if is_whole:
            captioned = stages.generated(
                encoder, f"{what}: draw captions", model, stages.prompts.folder / scene_eval.CAPTIONS, inputs,
                text_encoder, num_images=1, **guided,
            )  # fmt: skip
            parts.append(stages.compared(name, captioned, checkpoint))
            parts += [stages.clip_scored(name, drawn, checkpoint)] if stages.sections.clip else []
            parts += [Part(stage=trained, keys=(), checkpoint=(model,))] if choice is None else []
        else:
            undefined = dict.fromkeys(stages.fidelity_keys, "only the score is followed over a training")
        says = f"{encoder.source('generation')}; texts by {text_encoder}; {self.says_unseen(encoder)}"
        return Row(encoder=name, kind="measured", source=says, parts=tuple(parts), undefined=undefined)

    def says_unseen(self, encoder: Encoder) -> str:
        """Whether the encoder itself was trained on the pairs that the generator never saw."""
        made = self.stages.request.foundation
        if made is None or encoder.name not in made.encoders:
            return "its encoder was trained elsewhere, on pictures with every pair where its card names none"
        held_out = stage_config(ScenesConfig, self._foundation_scenes(), "foundation.scenes").held_out
        seen = "never saw" if held_out == self.stages.scenes.config.held_out else "saw"
        return f"its encoder {seen} the unseen pairs"

    def _foundation_scenes(self) -> dict:
        foundation = self.stages.request.preset.foundation
        phase = foundation.phases[0]
        return {**foundation.scenes, "image_size": phase.resolution, "num_train": phase.num_pictures}

    def ceiling(self, encoder: Encoder) -> tuple[Stage, Row]:
        """What a perfect generator of an encoder's tokens would get: the prompts' own renders, there and
        back."""
        rebuilt = self.stages.rebuilt(encoder)
        name = f"{encoder.name}, rebuilt renders"
        part = self.stages.scored(name, rebuilt, scene_eval.REBUILT, encoder.checkpoint)
        source = f"{encoder.source('generation')}: pictures that are right, through the encoder and back"
        about = {"source": source, "parts": (part,), "undefined": self._without_distance()}
        self.drawn[name] = rebuilt
        return part.stage, Row(encoder=name, kind="ceiling", **about)

    def limits(self) -> list[Row]:
        """What no encoder changes: the judge on renders, and chance."""
        part = self.stages.scored("renders", self.stages.prompts, scene_eval.RENDERS)
        small = says_how_small(self.stages.reference.config)
        source = f"pictures that are right, as drawn: what the judge misses{small}"
        about = {"source": source, "parts": (part,), "undefined": self._without_distance()}
        renders = Row(encoder="renders", kind="ceiling", **about)
        keys = [key for key in self.stages.score_keys
                if key.rpartition("/")[2] not in ("swap", "facts", "shuffled", "normalised")]  # fmt: skip
        others = [key for key in (*self.stages.score_keys, *self.stages.fidelity_keys) if key not in keys]
        chance = Row(
            encoder="chance",
            kind="floor",
            source="other scenes drawn at random in place of pictures",
            parts=(Part(stage=self.stages.prompts, keys=tuple(keys)),),
            undefined=dict.fromkeys(others, NO_PICTURES),
        )
        return [renders, chance]

    def _without_distance(self) -> dict[str, str]:
        return dict.fromkeys(self.stages.fidelity_keys, NO_DISTANCE) | {
            f"{scene_eval.SCORE}/normalised": "this is what is normalised by"
        }

    def draw(self, folder: Path, board: Mapping) -> list[Path]:
        """Prompts with their pictures, and the score over the training."""
        from harness.metrics.picture_sets import read_labels, read_pictures
        from harness.tables import curves, figures  # here: matplotlib and numpy delay the command line

        files = []
        complete = {name: stage for name, stage in self.drawn.items() if stage.done() is not None}
        if self.stages.prompts.done() is not None and complete:
            lines = (self.stages.prompts.folder / scene_eval.TEST).read_text().splitlines()
            places = {"render": self.stages.prompts.folder / scene_eval.RENDERS} | {
                name: stage.folder / (scene_eval.REBUILT if "rebuilt" in name else SAMPLES)
                for name, stage in complete.items()
                if " steps" not in name
            }
            sets = {name: (read_pictures(path), read_labels(path)) for name, path in places.items()}
            chosen = scene_eval.spread_over_tasks(lines)
            files.append(figures.prompts(folder / "prompts.png", chosen, sets))
        if self.stages.sections.curve:
            steps = stage_steps(board["rows"], self.stages.request.preset.text2image)
            files.append(
                curves.over_training(folder / "training.png", board["rows"], steps, scene_eval.CURVES)
            )
        return files


def stage_steps(rows: Sequence[Mapping], sections: TextToImageSections) -> dict[str, int]:
    """Row -> steps of its training, of those that are scored on the way and of where they lead."""
    last, found = int(sections.train["num_steps"]), {}
    for row in rows:
        base, _, tail = row["encoder"].rpartition(", ")
        if tail.endswith(" steps"):
            found |= {row["encoder"]: int(tail.removesuffix(" steps")), base: last}
    return found
