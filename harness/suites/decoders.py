"""An encoder with what turns its tokens into pixels.

encoder + pictures -> train_decoder -> described: the encoder's settings, and where its decoder lies
"""

import dataclasses

from encoder.runtime.config import ROOT
from harness.config import stage_config
from harness.encoders import Encoder
from harness.suites.released import describe
from harness.suites.request import Request
from harness.suites.scoring import add_stage, trunk_of
from harness.suites.shared import Pictures, trunk_to_train_with
from rae_bridge.config import TrainDecoderConfig

TRAIN = "train"  # as an encoder's decoder: a pixel decoder is trained for it


def with_decoder(request: Request, encoder: Encoder, pictures: Pictures) -> Encoder:
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
    files = trunk_of(config.perceptual, config.perceptual_weight, config.lpips_trunk)
    if config.adversarial is not None and config.adversarial.checkpoint not in (None, "random"):
        files.append(ROOT / config.adversarial.checkpoint)
    about = (pictures.inputs, pictures.places, files)
    stage = add_stage(request, encoder, "train_decoder", config, "pixel decoder", *about)
    decoded = dataclasses.replace(encoder.config, decoder=str(stage.folder / "weights"))
    described = describe(request.graph, decoded, made_by=[*encoder.stages, stage])
    return dataclasses.replace(described, files=encoder.files)
