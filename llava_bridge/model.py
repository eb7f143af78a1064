"""LLaVA assembled: a frozen tower, an untrained projector and a language model; saved as a folder that
transformers loads."""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import LlavaConfig as LlavaShape
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from encoder.load import load_encoder
from encoder.runtime.stage import write_json
from llava_bridge.attention import run_beginning, shared_length
from llava_bridge.config import Template
from llava_bridge.hf import UnitImageProcessor
from llava_bridge.language_model import check_language_model, open_tokenizer
from llava_bridge.loss import summed_loss
from llava_bridge.packing import PER_SAMPLE, sample_lengths
from llava_bridge.prompt import IGNORE, IMAGE, stop_ids
from llava_bridge.tower import FrozenTowerConfig

PROMPT = "prompt.json"  # in a model's folder: the template it was trained on


class LlavaOverTokens(LlavaForConditionalGeneration):
    """LLaVA that also takes `image_tokens`, cached tower outputs, and runs the projector on them live.

    A forward argument, not a call around the model, so that DeepSpeed and DDP see one graph. A batch
    without a picture placeholder takes its pictures times zero, so that every process of a run reduces the
    same gradients.
    """

    shares_beginnings = False  # in training, words that all rows begin with are run once

    @classmethod
    def adopt(cls, model: LlavaForConditionalGeneration) -> "LlavaOverTokens":
        """The same model, under this class. (Its own `from_pretrained` would not know LLaVA's key names on
        disk.)"""
        model.__class__ = cls
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ):
        """image_tokens: M N D, one row for each picture of the batch in order; the rest as the parent's.

        In training the language model's head sees the supervised positions alone: the same loss, and logits
        for a tenth of the tokens instead of all.
        """
        if image_tokens is None and pixel_values is not None and self.training:
            image_tokens, pixel_values = self.model.vision_tower(pixel_values).last_hidden_state, None
        unused = None
        if image_tokens is not None:
            projector = self.model.multi_modal_projector
            features = projector(image_tokens.to(projector.linear_1.weight.dtype))  # M N D_llm
            if (input_ids == self.config.image_token_index).any():
                mm_encoder_outputs = {"image": BaseModelOutputWithPooling(pooler_output=list(features))}
            else:
                unused = 0.0 * features.sum()
        if self.training and labels is not None:
            output = self._supervise(input_ids, mm_encoder_outputs, labels, **kwargs)
        else:
            output = super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                mm_encoder_outputs=mm_encoder_outputs,
                labels=labels,
                **kwargs,
            )
        if unused is not None:
            output.loss = output.loss + unused
        return output

    def _supervise(
        self,
        input_ids: Tensor,
        mm_encoder_outputs: dict | None,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        has_own_rows = "position_ids" not in kwargs  # not packed
        if has_own_rows and attention_mask is not None and attention_mask[:, 0].all():
            attention_mask = None  # padding on the right, which no token before it sees
        can_share = self.shares_beginnings and has_own_rows and attention_mask is None
        if can_share and (length := shared_length(input_ids, labels, self.config.image_token_index)):
            kwargs["past_key_values"] = run_beginning(self, input_ids[0, :length], len(input_ids))
            input_ids, labels = input_ids[:, length:], labels[:, length:]
        is_per_sample = self.config.text_config._attn_implementation == PER_SAMPLE
        if is_per_sample and "position_ids" in kwargs:
            kwargs["sample_lengths"] = sample_lengths(kwargs["position_ids"])
        hidden = self.model(
            input_ids=input_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            attention_mask=attention_mask,
            use_cache="past_key_values" in kwargs,
            **kwargs,
        ).last_hidden_state  # B L D_llm
        is_next_supervised = labels[:, 1:] != IGNORE
        targets = labels[:, 1:][is_next_supervised]
        total = summed_loss(self.lm_head, hidden[:, :-1][is_next_supervised], targets)
        # at least 1: every picture of a micro-batch may be broken, which leaves no label
        return LlavaCausalLMOutputWithPast(loss=total / (num_items_in_batch or max(1, len(targets))))


def build(
    encoder: str,
    features: str | None,
    llm: Path | str,
    attention: str,
    seed: int,
    num_image_tokens: int | None = None,
) -> tuple[LlavaOverTokens, LlavaProcessor]:
    """LLaVA over an encoder and a causal language model, a folder or a hub id: see `describe_start` and
    `assemble`."""
    tower, processor = describe_start(encoder, features, llm, num_image_tokens)
    return assemble(tower, processor.tokenizer, llm, attention, seed), processor


def describe_start(
    encoder: str, features: str | None, llm: Path | str, num_image_tokens: int | None = None
) -> tuple[FrozenTowerConfig, LlavaProcessor]:
    """The tower around an encoder, its grid resized where `num_image_tokens` says so, and the processor for
    it and a language model, whose weights are not read.

    Raises:
        FileNotFoundError: the folder holds no language model.
        ValueError: the grid cannot be resized so, LLaVA cannot hold this kind of language model, or the
            processor would make another number of placeholders than the tower gives tokens.
    """
    if isinstance(llm, Path) and not (llm / "config.json").is_file():
        raise FileNotFoundError(f"no language model in {llm}; give a folder with its weights and tokenizer")
    check_language_model(llm)
    frozen = load_encoder(encoder, features=features)
    tower = FrozenTowerConfig.describe(frozen, encoder, features, num_image_tokens)
    processor = build_processor(tower, open_tokenizer(llm))
    check_token_count(processor, tower)
    return tower, processor


def outline_new(
    tower: FrozenTowerConfig, tokenizer: PreTrainedTokenizerBase, llm: Path | str, attention: str
) -> LlavaOverTokens:
    """What `assemble` makes, on the meta device but for the tower: the language model's weights are not
    read."""
    text_config = AutoConfig.from_pretrained(llm)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    config = LlavaShape(
        vision_config=tower,
        text_config=text_config,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=tower.num_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    return _outline(config, attention)


def outline_saved(folder: Path, attention: str) -> LlavaOverTokens:
    """What `load` gives of a folder that a stage wrote, on the meta device but for the tower: its weights are
    not read."""
    return _outline(AutoConfig.from_pretrained(folder), attention)


def _outline(config: LlavaShape, attention: str) -> LlavaOverTokens:
    with torch.device("meta"):
        return LlavaOverTokens._from_config(config, attn_implementation=_attention_of_parts(attention))


def _attention_of_parts(attention: str) -> dict[str, str]:
    return {"text_config": attention, "vision_config": "sdpa"}


def assemble(
    tower: FrozenTowerConfig,
    tokenizer: PreTrainedTokenizerBase,
    llm: Path | str,
    attention: str,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> LlavaOverTokens:
    """LLaVA of a tower, a new projector drawn from `seed`, and a language model's weights, all but the tower
    in `dtype`. The weights are held once: LLaVA is made without any and takes the language model's over."""
    language_model = _read_language_model(llm, len(tokenizer), dtype)
    model = outline_new(tower, tokenizer, llm, attention)
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


def load(
    folder: Path, attention: str, dtype: torch.dtype
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Any llava-shaped folder, ours or one in llava-hf's layout, and its processor.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    _require_model(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation=_attention_of_parts(attention)
    )
    return model.eval(), AutoProcessor.from_pretrained(folder)


def describe_saved(folder: Path) -> tuple[FrozenTowerConfig, LlavaProcessor]:
    """The tower and the processor of a folder that a stage wrote; no weights are read.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: its tower is not one of ours.
    """
    _require_model(folder)
    tower = AutoConfig.from_pretrained(folder).vision_config
    if not isinstance(tower, FrozenTowerConfig):
        raise ValueError(f"the model in {folder} has a tower of its own ({tower.model_type}); run stage 1")
    return tower, AutoProcessor.from_pretrained(folder)


def _require_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no LLaVA model in {folder}; run its training stage first")


def save(
    model: LlavaOverTokens,
    processor: LlavaProcessor,
    folder: Path,
    template: Template = "vicuna_v1",
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write the folder as a plain `LlavaForConditionalGeneration`: `image_tokens` is a matter of training
    alone. `state`: the weights where the model itself does not hold them."""
    plain = copy.copy(model)
    plain.__class__ = LlavaForConditionalGeneration
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
