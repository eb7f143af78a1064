"""LLaVA-NeXT around a frozen tower: transformers' own model and processor, on a square grid without CLS.

A picture's sequence is the tokens of its first view, then those of its tiles as one map, row by row, without
what lies over padding, a learned `image_newline` closing each row: transformers' `pack_image_features`.
"""

import torch
from torch import Tensor, nn
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from encoder.data.records import IMAGE
from llava_bridge.any_resolution.views import Views
from llava_bridge.over_tokens import OverTokens
from llava_bridge.tower import FrozenTowerConfig


class LlavaNextOverTokens(OverTokens, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that also takes the tower's outputs for all views of a batch (`image_tokens`, M N D)."""

    plain = LlavaNextForConditionalGeneration

    def sequences(self, features: Tensor, image_sizes: Tensor | None) -> list[Tensor]:
        """Projected tokens of all views as each picture's sequence; without sizes every picture is its first
        view alone, and gets no newline."""
        if image_sizes is None:
            return list(features)
        pinpoints, side = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        counts = [image_size_to_num_patches(size, pinpoints, side) for size in image_sizes]
        views = features.split(counts)
        newline = self.model.image_newline
        return self.model.pack_image_features(views, image_sizes, "full", image_newline=newline)[0]

    def no_sequence(self, features: Tensor) -> Tensor:
        """No token, with a gradient of zero to the projector and the newline."""
        return torch.cat([super().no_sequence(features), self.model.image_newline[None][:0]])


def next_config(
    tower: FrozenTowerConfig, text_config: PreTrainedConfig, image_id: int, views: Views
) -> LlavaNextConfig:
    """The configuration of LLaVA-NeXT over this tower."""
    return LlavaNextConfig(
        vision_config=tower,
        text_config=text_config,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[list(canvas) for canvas in views.canvases],
        image_seq_length=tower.num_tokens,
        image_token_index=image_id,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def draw_newline(model: LlavaNextForConditionalGeneration, seed: int, dtype: torch.dtype) -> None:
    """Give the model a new `image_newline`: N(0, 1 / width), as the original draws it."""
    width = model.config.text_config.hidden_size
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    model.model.image_newline = nn.Parameter(drawn.to(dtype))


def next_processor(
    tower: FrozenTowerConfig, tokenizer: PreTrainedTokenizerBase, views: Views
) -> LlavaNextProcessor:
    """transformers' own processor: views by PIL, in [0, 1] (the encoder itself normalises), and a placeholder
    for each token."""
    tile = {"height": views.side, "width": views.side}
    image_processor = LlavaNextImageProcessorPil(
        size=tile,
        crop_size=tile,
        do_resize=False,  # views are cut at the tile's size
        do_center_crop=False,
        do_normalize=False,
        image_grid_pinpoints=[list(canvas) for canvas in views.canvases],
    )
    return LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
    )


def views_of(processor: LlavaNextProcessor) -> Views:
    """The views that a processor of ours cuts."""
    image_processor = processor.image_processor
    side = image_processor.size["height"]
    canvases = tuple((height, width) for height, width in image_processor.image_grid_pinpoints)
    return Views(side, side // processor.patch_size, canvases)
