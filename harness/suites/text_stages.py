"""The stages of suite=text2image: what is made once for all rows, and what each row adds."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.data.options import OF_SCENE_CENTRIC, ScenesConfig
from encoder.runtime.config import ROOT, resolve
from harness.config import merged, stage_config
from harness.encoders import Encoder
from harness.metrics.config import PICTURES, judge_of
from harness.running.stages import Stage
from harness.scene_eval import config as scene_eval
from harness.sections import TextToImageSections
from harness.suites.picture_sets import add_reference
from harness.suites.request import Request
from harness.suites.shared import Pictures, add_tokens
from harness.tables.result_files import Part
from rae_bridge.text.config import EncodeTextConfig, GenerateTextConfig, TrainTextConfig

SAMPLES = "samples.npz"
_CHOICE_SEED = 1_000_000  # more than the samples': of the pictures by which guidance is chosen


@dataclass(frozen=True)
class TextStages:
    """Adds the stages of one run to its graph, with the preset's values; equal ones are one."""

    request: Request
    sections: TextToImageSections
    scenes: Stage
    reference: Stage

    @staticmethod
    def begin(request: Request, sections: TextToImageSections) -> "TextStages":
        """Those that no row is without."""
        section = {**request.preset.scenes, **dict.fromkeys(OF_SCENE_CENTRIC, 0), **sections.scenes}
        config = stage_config(ScenesConfig, section, "text2image.scenes")
        about = {"label": "scenes for text", "seconds": request.seconds("scenes_text")}
        scenes = request.graph.add("scenes", "encoder.data.scenes.write", config, **about)
        pictures = Pictures(folder=str(scenes.folder), made_by=scenes)
        reference = add_reference(request, pictures, "pictures of captions", **sections.reference)
        return TextStages(request, sections, scenes, reference)

    @functools.cached_property
    def prompts(self) -> Stage:
        """SceneEval's prompts, and the test captions."""
        return self._add(
            "prompts", scene_eval.PromptsConfig, "SceneEval's prompts", [self.scenes],
            data=str(self.scenes.folder), num_captions=self.reference.config.num_samples,
        )  # fmt: skip

    @functools.cached_property
    def judge(self) -> Stage:
        """The one judge of every row: of the pictures' size, whatever the seed of the run."""
        return self._add(
            "judge", scene_eval.JudgeConfig, "SceneEval's judge", [], module="train_judge",
            image_size=self.scenes.config.image_size, device=self.request.device,
        )  # fmt: skip

    @property
    def score_keys(self) -> tuple[str, ...]:
        """Of all numbers by the judge of scenes."""
        return scene_eval.keys_of(self.scenes.config.held_out)

    @property
    def fidelity_keys(self) -> tuple[str, ...]:
        """Of the distances."""
        judge = judge_of(self.reference.config)
        return tuple(judge.key(name) for name in scene_eval.FIDELITY.values())

    def captions(self, text_encoder: str) -> Stage:
        """The train pictures' captions, encoded once for every row that is told them."""
        return self._add(
            "encode", EncodeTextConfig, f"captions by {Path(text_encoder).name}", [self.scenes],
            module="rae_bridge.text.encode", files=[ROOT / text_encoder], text_encoder=text_encoder,
            data=str(self.scenes.folder), device=self.request.device,
        )  # fmt: skip

    def trained(self, encoder: Encoder, what: str, changes: Mapping[str, Any], text_encoder: str) -> Stage:
        """The stage that trains a generator on the encoder's tokens, told texts."""
        tokens = add_tokens(self.request, encoder, "train", self.scenes)
        captions = self.captions(text_encoder)
        return self._add(
            "train", TrainTextConfig, f"{encoder.name}{what}: train the DiT on text", [tokens, captions],
            module="rae_bridge.text.train", changes=changes, tokens=str(tokens.folder),
            captions=str(captions.folder), keep_steps=list(self.sections.curve), seed=self.request.seed,
            device=self.request.device,
        )  # fmt: skip

    def sampling(self, encoder: Encoder, model: Path, prompts: Path, seed: int, **changes: Any) -> dict:
        """How pictures are drawn, for every row alike."""
        config = stage_config(
            GenerateTextConfig, {**self.sections.generate, **changes}, "text2image.generate",
            model=str(model), encoder=encoder.word, prompts=str(prompts), seed=seed,
            device=self.request.device,
        )  # fmt: skip
        return resolve(config)

    def choice(self, encoder: Encoder, what: str, trained: Stage, text_encoder: str) -> Stage:
        """The stage that finds the guidance of the best score, of one grid for all rows."""
        prompts = self.prompts.folder / scene_eval.VALIDATION
        seed = self.request.seed + _CHOICE_SEED
        return self._add(
            "choose", scene_eval.ChooseConfig, f"{encoder.name}{what}: find the guidance",
            [trained, self.prompts, self.judge, *encoder.stages], files=[*encoder.files, ROOT / text_encoder],
            sampling=self.sampling(encoder, trained.folder / "weights", prompts, seed),
            prompts=str(self.prompts.folder), judge=str(self.judge.folder),
        )  # fmt: skip

    def generated(
        self, encoder: Encoder, what: str, model: Path, prompts: Path, inputs: Sequence[Stage],
        text_encoder: str, **changes: Any,
    ) -> Stage:  # fmt: skip
        """The stage that draws prompts."""
        sampling = self.sampling(encoder, model, prompts, self.request.seed, **changes)
        return self._add(
            "generate", GenerateTextConfig, f"{encoder.name}{what}", [*inputs, self.prompts, *encoder.stages],
            module="rae_bridge.text.generate", files=[*encoder.files, ROOT / text_encoder], section=sampling,
        )  # fmt: skip

    def scored(
        self,
        name: str,
        pictures: Stage,
        file: str,
        checkpoint: tuple[Path, ...] = (),
        ceiling: Stage | None = None,
    ) -> Part:
        """What the judge of scenes says of pictures of the test prompts."""
        stage = self._add(
            "score", scene_eval.SceneScoreConfig, f"{name}: judge the pictures",
            [pictures, self.prompts, self.judge, *([ceiling] if ceiling else [])],
            pictures=str(pictures.folder / file), prompts=str(self.prompts.folder),
            judge=str(self.judge.folder), ceiling=None if ceiling is None else str(ceiling.folder),
            device=self.request.device,
        )  # fmt: skip
        has_ceiling = ceiling is not None
        keys = tuple(key for key in self.score_keys if has_ceiling or not key.endswith("/normalised"))
        data = (self.prompts.folder / scene_eval.TEST,)
        return Part(stage=stage, keys=keys, checkpoint=checkpoint, data=data)

    def compared(self, name: str, pictures: Stage, checkpoint: tuple[Path, ...]) -> Part:
        """Distances of pictures of captions to the captions' own."""
        stage = self._add(
            "fidelity", scene_eval.FidelityConfig, f"{name}: distances", [pictures, self.reference],
            section={}, pictures=str(pictures.folder / SAMPLES), reference=str(self.reference.folder),
            kernel_subset_size=self.reference.config.kernel_subset_size, device=self.request.device,
        )  # fmt: skip
        data = (self.reference.folder / PICTURES,)
        return Part(stage=stage, keys=self.fidelity_keys, checkpoint=checkpoint, data=data)

    def clip_scored(self, name: str, drawn: Stage, checkpoint: tuple[Path, ...]) -> Part:
        """CLIPScore of the pictures of the prompts."""
        stage = self._add(
            "clip_score", scene_eval.ClipScoreConfig, f"{name}: CLIPScore", [drawn, self.prompts], section={},
            files=[ROOT / self.sections.clip], clip=self.sections.clip, device=self.request.device,
            pictures=str(drawn.folder / SAMPLES), prompts=str(self.prompts.folder / scene_eval.TEST),
        )  # fmt: skip
        return Part(stage=stage, keys=("CLIPScore",), checkpoint=checkpoint)

    def rebuilt(self, encoder: Encoder) -> Stage:
        """The prompts' own renders through an encoder and back."""
        return self._add(
            "rebuild", scene_eval.RebuildConfig, f"{encoder.name}: rebuild the prompts' renders",
            [self.prompts, *encoder.stages], files=encoder.files, section={},
            prompts=str(self.prompts.folder), encoder=encoder.word, device=self.request.device,
        )  # fmt: skip

    def _add(
        self,
        name: str,
        cls: type,
        label: str,
        inputs: Sequence[Stage],
        *,
        module: str | None = None,
        files: Sequence[Path] = (),
        section: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
        **filled: Any,
    ) -> Stage:
        """A stage of `harness.scene_eval` (or of another module) from the section of its name, with changes
        to it."""
        of_scene_eval = module is None or "." not in module
        section = getattr(self.sections, name) if section is None else section
        config = stage_config(cls, merged(section, changes or {}), f"text2image.{name}", **filled)
        folder = f"{'scene' if of_scene_eval else 'text'}_{name}"
        return self.request.graph.add(
            folder,
            f"harness.scene_eval.{module or name}" if of_scene_eval else module,
            config,
            label=label,
            inputs=inputs,
            files=files,
            seconds=self.request.seconds(folder),
        )
