"""LLaVA-NeXT around a frozen tower: transformers' own model and processor, on a square grid without CLS.

A picture's sequence is the tokens of its first view, then those of its tiles as one map, row by row, without
what lies over padding, a learned `image_newline` closing each row: transformers' `pack_image_features`.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from encoder.data.records import IMAGE
from llava_bridge.any_resolution.views import Views
from llava_bridge.config import LlavaConfig
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


def learns_newline(config: LlavaConfig) -> bool:
    """Whether a stage trains `image_newline`: the original does not in stage 1, and it is not in the sequence
    of a first view alone."""
    is_seen = config.framework == "llava_next" and config.views == "tiles"
    return is_seen and (config.newline == "trained" or config.stage == 2)


def check_framework(config: LlavaConfig, processor: ProcessorMixin, init: Path) -> None:
    """Compare a stage with the model that it goes on from.

    Raises:
        ValueError: the model is of another framework, or of other tiles.
    """
    is_next = isinstance(processor, LlavaNextProcessor)
    if is_next != (config.framework == "llava_next"):
        found = "llava_next" if is_next else "llava_1_5"
        raise ValueError(
            f"{init} was aligned as {found}, not {config.framework}; run stage 1 for this framework"
        )
    if is_next:
        views = views_of(processor)
        wanted = Views.of(config.tiles, views.side, views.grid)
        if views != wanted:
            raise ValueError(
                f"{init} was aligned with canvases {views.canvases}, not {wanted.canvases} (height, width; "
                "their order counts); run stage 1 with these tiles"
            )


def use_square(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Let a model see every picture on the one canvas of 2 x 2 tiles, as Open-LLaVA-NeXT evaluates.

    Source: xiaoachen98/Open-LLaVA-NeXT@a4dfe53, `--square_eval True`.

    Raises:
        ValueError: it is no LLaVA-NeXT.
    """
    if not isinstance(processor, LlavaNextProcessor):
        raise ValueError("square_eval is of llava_next: this model has no tiles")
    side = model.config.vision_config.image_size
    model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = [
        [2 * side, 2 * side]
    ]
