"""A weights folder by `rae_bridge.text.train`: what `rae_bridge.weights_folder` says of one, and text.json,
which says whose texts the model knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from encoder.models.pretrained import WEIGHTS_FILE, read_config
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, load
from rae_bridge.codec import TOKENS_FILE
from rae_bridge.latents import LatentStatistics
from rae_bridge.text.config import TextShape
from rae_bridge.text.model import TextDiT
from rae_bridge.weights_folder import FLOW_FILE, STATISTICS_FILE

TEXT_FILE = "text.json"


def is_text_model(folder: Path | str) -> bool:
    """Whether a weights folder is of a model that is told texts.

    Raises: FileNotFoundError, ValueError: it is no weights folder.
    """
    return read_config(folder).get("model") == TextDiT.name


@dataclass(frozen=True, slots=True)
class TextWeights:
    """What a weights folder says of its model."""

    path: Path
    shape: TextShape
    tokens: Mapping[str, str]  # encoder, features, and the fingerprint of the two
    statistics: LatentStatistics
    shift: float
    step: int | None
    text: Mapping[str, Any]  # of the text encoder

    @staticmethod
    def read(folder: Path | str) -> "TextWeights":
        """Raises: FileNotFoundError, ValueError: it is none, or is damaged."""
        path = ROOT / folder
        config = read_config(path)
        if config.get("model") != TextDiT.name:
            raise ValueError(
                f"{path} holds a model of kind {config.get('model')!r}, which is told no text; name one by "
                "rae_bridge.text.train"
            )
        shape = load(TextShape, config["shape"], name=f"{path}/config.json")
        for file in (FLOW_FILE, TOKENS_FILE, TEXT_FILE):
            if not (path / file).is_file():
                raise FileNotFoundError(f"{path} is no weights folder of rae_bridge.text.train: no {file}")
        flow, tokens, text = (
            json.loads((path / file).read_text()) for file in (FLOW_FILE, TOKENS_FILE, TEXT_FILE)
        )
        statistics = LatentStatistics.load(path / STATISTICS_FILE)
        return TextWeights(path, shape, tokens, statistics, flow["shift"], flow.get("step"), text)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return checkpoint.load_tensors(self.path / WEIGHTS_FILE)

    def check_texts(self, about: Mapping[str, Any]) -> None:
        """Raises: ValueError if a text encoder is not the one that the model was trained with."""
        if about["fingerprint"] != self.text["fingerprint"]:
            names = [f"{each['source']} ({each['kind']}, {each['max_length']} tokens, "
                     f"{each['fingerprint'][:12]})" for each in (self.text, about)]  # fmt: skip
            raise ValueError(f"the model {self.path} knows texts of {names[0]}, these are of {names[1]}")
