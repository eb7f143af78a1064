"""What a preset trains itself before anything is measured: VAE, encoders, pixel decoders, language model.

scenes (pictures and texts, for each phase's size) -> vae
scenes, vae -> encoder.train, a stage for each phase -> trained                            OpenVision 3
scenes -> encoder.train, a stage for each phase -> trained -> train_decoder -> trained     on pixels
scenes -> train_llm                                                                        language model
All encoders go through the same phases: the same samples in the same order at the same resolutions. They have
the preset's own seeds: `seed=` and `seeds=` are of what is measured on them.
"""

from dataclasses import dataclass
from typing import Any

from encoder.data.options import ScenesConfig
from encoder.options import EncoderConfig
from encoder.training.options import TrainConfig, TrainVaeConfig
from encoder.training.recipe import at_resolution
from harness.config import Preset, merged, stage_config
from harness.described import ENCODER_FILE
from harness.encoders import Encoder
from harness.running.stages import Graph, Stage
from harness.sections import FoundationSections, MadeEncoder, PhaseSection
from harness.trained import TrainedConfig
from llava_bridge.config import TrainLlmConfig
from rae_bridge.config import TrainDecoderConfig

WEIGHTS_FOLDER = "weights"  # where each training leaves its result


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """What is made: encoders by name, and the stage of the language model."""

    encoders: dict[str, Encoder]
    vae: Stage
    language_model: Stage


def add_foundation(graph: Graph, preset: Preset, sections: FoundationSections, device: str) -> Foundation:
    """The stages that make it."""
    maker = _Maker(graph, preset, device, sections)
    encoders = {name: maker.encoder(name, made) for name, made in sections.encoders.items()}
    scenes = maker.scenes[0]
    config = stage_config(
        TrainLlmConfig,
        sections.language_model,
        "foundation.language_model",
        layouts=[str(scenes.folder / "layouts.jsonl")],
        device=device,
    )
    model = maker.add("train_llm", "llava_bridge.train_llm", config, "language model", [scenes])
    return Foundation(encoders=encoders, vae=maker.vae, language_model=model)


class _Maker:
    """Adds the stages of one preset, those that several encoders need once."""

    def __init__(self, graph: Graph, preset: Preset, device: str, sections: FoundationSections) -> None:
        self.graph, self.preset, self.device = graph, preset, device
        self.phases = sections.phases
        self.scenes = [self._scenes(sections.scenes, phase) for phase in self.phases]
        data = self.scenes[-1]
        config = stage_config(
            TrainVaeConfig, sections.vae, "foundation.vae", data=str(data.folder), device=device
        )
        self.vae = self.add("train_vae", "encoder.train_vae", config, "VAE", [data])

    def add(self, name: str, module: str, config: Any, label: str, inputs: list[Stage]) -> Stage:
        seconds = self.preset.seconds.get(f"foundation_{name}", self.preset.seconds.get(name, 0.0))
        label = f"foundation: {label}"
        return self.graph.add(name, module, config, label=label, inputs=inputs, seconds=seconds)

    def _scenes(self, section: dict[str, Any], phase: PhaseSection) -> Stage:
        """A phase's pictures; the texts, which have no size, are the first one's."""
        text = {} if phase is self.phases[0] else {"num_text": 0, "num_layouts": 0}
        config = stage_config(
            ScenesConfig,
            {**section, **text},
            "foundation.scenes",
            image_size=phase.resolution,
            num_train=phase.num_pictures,
        )
        label = f"pictures of {phase.resolution} px to train on"
        return self.add("scenes", "encoder.data.scenes.write", config, label, [])

    def encoder(self, name: str, made: MadeEncoder) -> Encoder:
        """Trained; where it has no decoder of its own, with a pixel decoder trained on its frozen tokens."""
        place, above = f"foundation.encoders.{name}", []
        filled = {"device": self.device}
        if "openvision3" in made.train:
            filled["vae"] = str(self.vae.folder / WEIGHTS_FOLDER)
            above.append(self.vae)
        trained = None
        for phase, data in zip(self.phases, self.scenes, strict=True):
            section = at_resolution(merged(made.train, phase.train), phase.resolution)
            init, previous = ({}, []) if trained is None else ({"init": str(trained.folder)}, [trained])
            config = stage_config(
                TrainConfig, section, f"{place}.train", data=str(data.folder), **init, **filled
            )
            label = f"{name}: train at {phase.resolution} px"
            trained = self.add("encoder_train", "encoder.train", config, label, [data, *above, *previous])
        decoder = "own"
        if made.decoder is not None:
            described = self._describe(name, made, trained, None, above)
            config = stage_config(
                TrainDecoderConfig,
                made.decoder,
                f"{place}.decoder",
                encoder=str(described.folder / ENCODER_FILE),
                data=str(data.folder),
                device=self.device,
            )
            inputs = [data, trained, described]
            stage = self.add(
                "train_decoder", "rae_bridge.train_decoder", config, f"{name}: pixel decoder", inputs
            )
            decoder, above = str(stage.folder / WEIGHTS_FOLDER), [stage]
        described = self._describe(name, made, trained, decoder, above)
        return Encoder(
            name=name,
            word=str(described.folder / ENCODER_FILE),
            config=EncoderConfig(name=name, source="trained by the preset", features=made.features),
            files=(),
            stages=(trained, described, *above),
        )

    def _describe(
        self, name: str, made: MadeEncoder, trained: Stage, decoder: str | None, above: list[Stage]
    ) -> Stage:
        config = TrainedConfig(run=str(trained.folder), name=name, decoder=decoder, features=made.features)
        label = f"{name}: {'losses' if decoder else 'losses, for its decoder'}"
        return self.add("trained", "harness.trained", config, label, [trained, *above])
