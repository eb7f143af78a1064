"""What a preset trains itself before anything is measured: VAE, encoders, pixel decoders, language model.

scenes (training pictures and texts) -> vae -> encoder.train -> trained      OpenVision 3
scenes -> encoder.train -> trained -> train_decoder -> trained               an encoder on pixels
scenes -> train_llm                                                          language model
They have the preset's own seeds: `seed=` and `seeds=` are of what is measured on them.
"""

from dataclasses import dataclass
from typing import Any

from encoder.options import EncoderConfig, ScenesConfig, TrainConfig, TrainVaeConfig
from harness.config import FoundationSections, MadeEncoder, Preset, stage_config
from harness.encoders import Encoder
from harness.stages import Graph, Stage
from harness.trained import ENCODER_FILE, TrainedConfig
from llava_bridge.config import TrainLlmConfig
from rae_bridge.config import TrainDecoderConfig

WEIGHTS = "weights"  # where each training leaves its result


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
    config = stage_config(
        TrainLlmConfig,
        sections.language_model,
        "foundation.language_model",
        corpus=[str(maker.scenes.folder / "text.jsonl")],
        device=device,
    )
    model = maker.add("train_llm", "llava_bridge.train_llm", config, "language model", [maker.scenes])
    return Foundation(encoders=encoders, vae=maker.vae, language_model=model)


class _Maker:
    """Adds the stages of one preset, those that several encoders need once."""

    def __init__(self, graph: Graph, preset: Preset, device: str, sections: FoundationSections) -> None:
        self.graph, self.preset, self.device = graph, preset, device
        config = stage_config(ScenesConfig, sections.scenes, "foundation.scenes")
        self.scenes = self.add("scenes", "encoder.data.scenes.write", config, "pictures to train on", [])
        config = stage_config(
            TrainVaeConfig, sections.vae, "foundation.vae", data=str(self.scenes.folder), device=device
        )
        self.vae = self.add("train_vae", "encoder.train_vae", config, "VAE", [self.scenes])

    def add(self, name: str, module: str, config: Any, label: str, inputs: list[Stage]) -> Stage:
        seconds = self.preset.seconds.get(f"foundation_{name}", self.preset.seconds.get(name, 0.0))
        label = f"foundation: {label}"
        return self.graph.add(name, module, config, label=label, inputs=inputs, seconds=seconds)

    def encoder(self, name: str, made: MadeEncoder) -> Encoder:
        """Trained; where it has no decoder of its own, with a pixel decoder trained on its frozen tokens."""
        place, filled = (
            f"foundation.encoders.{name}",
            {"data": str(self.scenes.folder), "device": self.device},
        )
        inputs = [self.scenes]
        if "openvision3" in made.train:
            filled["vae"] = str(self.vae.folder / WEIGHTS)
            inputs.append(self.vae)
        config = stage_config(TrainConfig, made.train, f"{place}.train", **filled)
        trained = self.add("encoder_train", "encoder.train", config, f"{name}: train", inputs)
        decoder, above = "own", inputs[1:]
        if made.decoder is not None:
            described = self._describe(name, made, trained, None, above)
            config = stage_config(
                TrainDecoderConfig,
                made.decoder,
                f"{place}.decoder",
                encoder=str(described.folder / ENCODER_FILE),
                data=str(self.scenes.folder),
                device=self.device,
            )
            inputs = [self.scenes, trained, described]
            stage = self.add(
                "train_decoder", "rae_bridge.train_decoder", config, f"{name}: pixel decoder", inputs
            )
            decoder, above = str(stage.folder / WEIGHTS), [stage]
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
