"""LLaVA assembled: a frozen tower, an untrained projector and a language model; saved as a folder that
transformers loads."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import LlavaConfig as LlavaShape

from encoder.load import load_encoder
from encoder.runtime.config import choose
from encoder.runtime.stage import write_json
from llava_bridge.any_resolution.model import (
    LlavaNextOverTokens,
    draw_newline,
    next_config,
    next_processor,
    views_of,
)
from llava_bridge.any_resolution.views import Views
from llava_bridge.config import Template
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.language_model import check_language_model, open_tokenizer
from llava_bridge.over_tokens import OverTokens
from llava_bridge.prompt import IMAGE, stop_ids
from llava_bridge.tower import FrozenTowerConfig

Tiles = Sequence[Sequence[int]]  # [columns, rows] of each canvas
Processor = LlavaProcessor | LlavaNextProcessor
PROMPT = "prompt.json"  # in a model's folder: the template it was trained on


class LlavaOverTokens(OverTokens, LlavaForConditionalGeneration):
    """LLaVA-1.5 that also takes `image_tokens`."""

    plain = LlavaForConditionalGeneration


_TRAINED = {"llava": LlavaOverTokens, "llava_next": LlavaNextOverTokens}  # by transformers' model_type


def adopt(model: PreTrainedModel) -> OverTokens:
    """transformers' model, as the one that is trained."""
    return choose(_TRAINED, model.config.model_type, "kind of LLaVA").adopt(model)


def build(
    encoder: str,
    features: str | None,
    llm: Path | str,
    attention: str,
    seed: int,
    num_image_tokens: int | None = None,
    tiles: Tiles | None = None,
) -> tuple[OverTokens, Processor]:
    """LLaVA over an encoder and a causal language model, a folder or a hub id: see `describe_start` and
    `assemble`."""
    tower, processor = describe_start(encoder, features, llm, num_image_tokens, tiles)
    return assemble(tower, processor, llm, attention, seed), processor


def describe_start(
    encoder: str,
    features: str | None,
    llm: Path | str,
    num_image_tokens: int | None = None,
    tiles: Tiles | None = None,
) -> tuple[FrozenTowerConfig, Processor]:
    """The tower around an encoder, its grid resized where `num_image_tokens` says so, and the processor for
    it and a language model, whose weights are not read. With `tiles`, LLaVA-NeXT's, see `any_resolution`.

    Raises:
        FileNotFoundError: the folder holds no language model.
        ValueError: the grid cannot be resized or tiled so, LLaVA cannot hold this kind of language model, or
            the processor would make another number of placeholders than the tower gives tokens.
    """
    if isinstance(llm, Path) and not (llm / "config.json").is_file():
        raise FileNotFoundError(f"no language model in {llm}; give a folder with its weights and tokenizer")
    check_language_model(llm)
    frozen = load_encoder(encoder, features=features)
    tower = FrozenTowerConfig.describe(frozen, encoder, features, num_image_tokens)
    if tiles is not None:
        views = Views.for_tower(tiles, frozen.image_size, frozen.grid, encoder)
        return tower, next_processor(tower, open_tokenizer(llm), views)
    processor = build_processor(tower, open_tokenizer(llm))
    check_token_count(processor, tower)
    return tower, processor


def outline_new(
    tower: FrozenTowerConfig, processor: Processor, llm: Path | str, attention: str
) -> OverTokens:
    """What `assemble` makes, on the meta device but for the tower: the language model's weights are not
    read."""
    text_config = AutoConfig.from_pretrained(llm)
    text_config.vocab_size = max(text_config.vocab_size, len(processor.tokenizer))
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    if isinstance(processor, LlavaNextProcessor):
        return _outline(next_config(tower, text_config, image_id, views_of(processor)), attention)
    config = LlavaShape(
        vision_config=tower,
        text_config=text_config,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=tower.num_tokens,
        image_token_index=image_id,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    return _outline(config, attention)


def outline_saved(folder: Path, attention: str) -> OverTokens:
    """What `load` gives of a folder that a stage wrote, on the meta device but for the tower: its weights are
    not read."""
    return _outline(AutoConfig.from_pretrained(folder), attention)


def _outline(config: PreTrainedConfig, attention: str) -> OverTokens:
    kind = choose(_TRAINED, config.model_type, "kind of LLaVA")
    with torch.device("meta"):
        return kind._from_config(config, attn_implementation=_attention_of_parts(attention))


def _attention_of_parts(attention: str) -> dict[str, str]:
    return {"text_config": attention, "vision_config": "sdpa"}


def assemble(
    tower: FrozenTowerConfig,
    processor: Processor,
    llm: Path | str,
    attention: str,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> OverTokens:
    """LLaVA, of the processor's kind, of a tower, a new projector drawn from `seed`, and a language model's
    weights, all but the tower in `dtype`. The weights are held once: LLaVA is made without any and takes the
    language model's over."""
    tokenizer = processor.tokenizer
    language_model = _read_language_model(llm, len(tokenizer), dtype)
    model = outline_new(tower, processor, llm, attention)
    _take_over(model.model.language_model, language_model.model)
    _take_over(model.lm_head, language_model.lm_head)
    model.tie_weights()
    # LLaVA's start (torch's own for a linear layer), and the same one for every encoder of this width
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    torch.manual_seed(seed)
    for layer in projector.children():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    for part in (model.model.language_model, model.lm_head, projector):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
    if isinstance(model, LlavaNextOverTokens):
        draw_newline(model, seed, dtype)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _read_language_model(llm: Path | str, num_tokens: int, dtype: torch.dtype) -> PreTrainedModel:
    """In float32, or else in its checkpoint's own type, with an embedding for each of the tokenizer's
    `num_tokens`. New ones are drawn in float32 whatever the type."""
    read_as = torch.float32 if dtype == torch.float32 else "auto"
    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=read_as)
    if num_tokens > language_model.config.vocab_size:
        language_model.get_input_embeddings().float()
        language_model.lm_head.float()
        language_model.resize_token_embeddings(num_tokens)
    return language_model


def _take_over(target: nn.Module, source: nn.Module) -> None:
    """Give `target` the very tensors of `source`, also the buffers that no file holds."""
    target.load_state_dict(source.state_dict(), assign=True)
    for path, buffer in source.named_buffers():
        owner, _, name = path.rpartition(".")
        setattr(target.get_submodule(owner), name, buffer)


def build_processor(tower: FrozenTowerConfig, tokenizer) -> LlavaProcessor:
    """A processor that writes one placeholder for each of the tower's tokens."""
    num_patches = (tower.image_size // tower.patch_size) ** 2
    return LlavaProcessor(
        UnitImageProcessor(tower.image_size),
        tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=tower.num_tokens - num_patches,
    )


def check_token_count(processor: LlavaProcessor, tower: FrozenTowerConfig) -> None:
    """Compare the placeholders that the processor writes with the tokens that the tower gives, before any
    training.

    Raises:
        ValueError: they differ.
    """
    size = processor.image_processor.image_size
    count = (size // processor.patch_size) ** 2 + processor.num_additional_image_tokens
    count -= processor.vision_feature_select_strategy == "default"
    if count != tower.num_tokens:
        raise ValueError(
            f"the processor writes {count} picture placeholders, the tower '{tower.source}' gives "
            f"{tower.num_tokens} tokens; mend patch_size, num_additional_image_tokens or "
            "vision_feature_select_strategy"
        )


def load(folder: Path, attention: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Processor]:
    """Any llava-shaped folder, ours or one in llava-hf's layout, and its processor.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    _require_model(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation=_attention_of_parts(attention)
    )
    return model.eval(), _open_processor(folder, model.config)


def _open_processor(folder: Path, config: PreTrainedConfig) -> Processor:
    """LLaVA-NeXT's by PIL, whose pixels are the original's; torchvision's differ where they shrink."""
    return AutoProcessor.from_pretrained(
        folder, **({"backend": "pil"} if config.model_type == "llava_next" else {})
    )


def describe_saved(folder: Path) -> tuple[FrozenTowerConfig, Processor]:
    """The tower and the processor of a folder that a stage wrote; no weights are read.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: its tower is not one of ours.
    """
    _require_model(folder)
    config = AutoConfig.from_pretrained(folder)
    tower = config.vision_config
    if not isinstance(tower, FrozenTowerConfig):
        raise ValueError(f"the model in {folder} has a tower of its own ({tower.model_type}); run stage 1")
    return tower, _open_processor(folder, config)


def _require_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no LLaVA model in {folder}; run its training stage first")


def save(
    model: OverTokens,
    processor: Processor,
    folder: Path,
    template: Template = "vicuna_v1",
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write the folder as transformers' own model: `image_tokens` is a matter of training alone. `state`: the
    weights where the model itself does not hold them."""
    plain = copy.copy(model)
    plain.__class__ = model.plain
    plain.generation_config.eos_token_id = _one_or_all(stop_ids(template, processor.tokenizer))
    plain.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
    write_json(folder / PROMPT, {"template": template})


def _one_or_all(ids: list[int]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else ids or None


def read_template(folder: Path) -> Template:
    """The prompt template that a folder's model was trained on; `vicuna_v1` where it does not say (llava-hf).

    A model of stage 1 alone saw captions (`plain`), which ask nothing: it too is asked in `vicuna_v1`.
    """
    path = folder / PROMPT
    template = json.loads(path.read_text())["template"] if path.is_file() else "vicuna_v1"
    return "vicuna_v1" if template == "plain" else template
