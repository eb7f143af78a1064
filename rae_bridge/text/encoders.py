"""Frozen text encoders from folders: T5, CLIP and causal language models by transformers, and the text towers
that `encoder.train` exports with our own encoders.

Letters: B texts, L text tokens, D width of a token, P width of a text's one vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from encoder.data.tokenizer import Tokenizer
from encoder.models.clip import Clip
from encoder.models.openvision3 import OpenVision3
from encoder.models.pretrained import CONFIG_FILE, read_config
from encoder.models.text import TextEncoder
from encoder.runtime.config import ROOT
from encoder.runtime.stage import sha256_file, sha256_json

OWN = {"openvision3": OpenVision3, "clip": Clip}  # `model` in config.json of our own weights folders
_T5 = ("t5", "mt5", "umt5")
_CLIP = ("clip", "clip_text_model")
_READ = (".safetensors", ".bin", ".json", ".model", ".txt")  # files that make an encoder what it is
_CHOICES = "a folder with T5, CLIP or a causal language model, or our own weights with their text tower"


@dataclass(frozen=True, slots=True)
class Text:
    """Encoded texts: tokens B L D, mask B L (True at real tokens), pooled B P."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def to(self, device: torch.device | str) -> "Text":
        """The same on a device."""
        return Text(*(each.to(device) for each in (self.tokens, self.mask, self.pooled)))


class TextModel(Protocol):
    """A frozen text encoder."""

    about: dict[str, Any]  # source, kind, max_length, text_width, pooled_width, fingerprint

    def encode(self, texts: Sequence[str]) -> Text: ...


def load_text_encoder(source: str, max_length: int = 256, device: str = "cpu") -> TextModel:
    """The text encoder in a folder, frozen, in fp32; texts are cut at `max_length` tokens.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no text encoder of a kind that is known.
    """
    folder = ROOT / source
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"text encoder not found: {folder} has no {CONFIG_FILE}; give {_CHOICES}")
    if read_config(folder).get("model") in OWN:
        return OwnTower(source, folder, device)
    return Transformers(source, folder, max_length, device)


class OwnTower:
    """The contrastive text tower of one of our own encoders.

    It was trained without a padding mask: its pads carry signal, so every place is a token, none is masked,
    and each text has the tower's whole context length. Pooled is what was contrasted, read at the last place.
    """

    def __init__(self, source: str, folder: Path, device: str) -> None:
        name = read_config(folder)["model"]
        tower = getattr(OWN[name].from_pretrained(folder), "text", None)
        if tower is None:
            raise ValueError(
                f"{folder} holds no text tower: take weights that encoder.train wrote with export_text=true"
            )
        self.tower: TextEncoder = tower.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device = Tokenizer(tower.shape.tokenizer), device
        widths = {"text_width": tower.shape.width, "pooled_width": tower.head.out_features}
        self.about = describe(source, folder, name, tower.shape.context_length, widths)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Text:
        """Raises: ValueError: a word that its closed vocabulary has not."""
        ids = self.tokenizer.contrastive_ids(texts, self.about["max_length"]).to(self.device)
        tokens = self.tower.tokens(ids)  # B L D
        return Text(tokens, torch.ones_like(ids, dtype=torch.bool), self.tower.pool(tokens))


class Transformers:
    """T5 (its encoder), CLIP (its text model) or a causal language model: the last hidden states.

    Pooled is CLIP's own, the mean of T5's tokens, the last token's state of a language model; zeros where the
    tokenizer finds no token, as some do in the empty text. No chat template is used.
    """

    def __init__(self, source: str, folder: Path, max_length: int, device: str) -> None:
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)
        self.kind = _kind_of(config, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.padding_side = "right"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        model = _model_class(self.kind).from_pretrained(folder, dtype=torch.float32)
        self.model, self.tokenizer = model.eval().requires_grad_(False).to(device), tokenizer
        self.device = device
        text = getattr(model.config, "text_config", None) or model.config
        most = getattr(text, "max_position_embeddings", max_length) if self.kind != "t5" else max_length
        width = text.hidden_size
        widths = {"text_width": width, "pooled_width": width}
        self.about = describe(source, folder, self.kind, min(max_length, most), widths)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Text:
        length = self.about["max_length"]
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        ids, mask = words["input_ids"].long(), words["attention_mask"].bool()
        if not mask.any():  # only empty texts: there is nothing to look at
            shape = (len(texts), ids.shape[1], self.about["text_width"])
            empty = torch.zeros(shape, device=self.device)
            return Text(empty, mask, empty.new_zeros(len(texts), self.about["pooled_width"]))
        output = self.model(input_ids=ids, attention_mask=mask)
        tokens = output.last_hidden_state.masked_fill(~mask[..., None], 0.0)  # an empty row may hold NaN
        if self.kind == "clip":
            return Text(tokens, mask, output.pooler_output)
        count = mask.sum(dim=1, keepdim=True)
        if self.kind == "t5":
            return Text(tokens, mask, tokens.sum(dim=1) / count.clamp(min=1))
        last = tokens[torch.arange(len(tokens)), (count[:, 0] - 1).clamp(min=0)]
        return Text(tokens, mask, last)


def _kind_of(config: Any, folder: Path) -> str:
    if config.model_type in _T5:
        return "t5"
    if config.model_type in _CLIP:
        return "clip"
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if config.model_type not in CAUSAL or getattr(config, "vision_config", None) is not None:
        raise ValueError(f"{folder} holds {config.model_type}; give {_CHOICES}")
    return "causal"


def _model_class(kind: str) -> Any:
    import transformers

    names = {"t5": "AutoModelForTextEncoding", "clip": "CLIPTextModel", "causal": "AutoModel"}
    return getattr(transformers, names[kind])


def describe(source: str, folder: Path, kind: str, max_length: int, widths: dict[str, int]) -> dict[str, Any]:
    """What a folder of captions or a model's weights folder says of the text encoder."""
    files = sorted(each for each in folder.iterdir() if each.suffix in _READ)
    contents = {each.name: sha256_file(each) for each in files}
    fingerprint = sha256_json({"kind": kind, "max_length": max_length, "files": contents})
    return {"source": source, "kind": kind, "max_length": max_length, **widths, "fingerprint": fingerprint}
