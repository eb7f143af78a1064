"""A `FrozenEncoder` as the vision tower of transformers' `LlavaForConditionalGeneration`.

The tower takes pixels in [0, 1], resized and normalised by the encoder itself, and gives z_u (B N D). It is
frozen for good: no mode switch wakes it, no graph is built through it, and a change of the model's dtype
leaves its weights as they are. On request its square grid of tokens is resized to a fixed number of them, so
that encoders are compared at equal cost of the language model.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoder.frozen import FrozenEncoder
from encoder.load import load_encoder


def square_side(num_tokens: int) -> int:
    """Tokens along one side of a square grid.

    Raises:
        ValueError: the number is not a square.
    """
    side = math.isqrt(max(0, num_tokens))
    if side == 0 or side * side != num_tokens:
        nearest = [max(1, side) ** 2, (side + 1) ** 2]
        raise ValueError(
            f"num_image_tokens {num_tokens} is no square grid; take {nearest[0]} or {nearest[1]}"
        )
    return side


def resize_grid(tokens: Tensor, grid: tuple[int, int], num_tokens: int) -> Tensor:
    """tokens (B N D) of a square grid (rows, columns) -> B num_tokens D, float32: bilinear, antialiased, so
    that a smaller grid averages what it covers.

    Source: after Cambrian-1's `-interp576` towers (cambrian 539ffc3), which are bilinear and not antialiased.

    Raises:
        ValueError: the encoder's grid or the one asked for is not square.
    """
    if grid[0] != grid[1]:
        raise ValueError(
            f"the encoder's tokens are a grid of {grid[0]} x {grid[1]}, and only a square one can be "
            "resized; leave num_image_tokens out"
        )
    side = square_side(num_tokens)
    maps = rearrange(tokens.float(), "B (h w) D -> B D h w", h=grid[0])
    maps = F.interpolate(maps, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(maps, "B D h w -> B (h w) D")


class FrozenTowerConfig(PreTrainedConfig):
    """What the tower is made from, and the sizes that LLaVA and its processor ask for."""

    model_type = "frozen_encoder_tower"
    # what `load_encoder` takes; it gives the architecture, a saved model's weights come from its own file
    source: str = ""
    features: str | None = None
    fingerprint: str = ""
    image_size: int = 0  # pixels
    patch_size: int = 0  # pixels a visual token covers, one way
    num_tokens: int = 0  # that the language model sees
    num_encoder_tokens: int = 0  # that the encoder gives, resized to num_tokens; 0: as many
    hidden_size: int = 0
    num_hidden_layers: int = 1  # one feature map is offered

    @classmethod
    def describe(
        cls, encoder: FrozenEncoder, source: str, features: str | None, num_tokens: int | None = None
    ) -> "FrozenTowerConfig":
        """The configuration of a tower around this encoder, its grid resized to `num_tokens` where given.

        Raises:
            ValueError: its grid cannot be resized to so many.
        """
        columns = encoder.grid[1]
        if num_tokens is not None:
            resize_grid(torch.zeros(1, encoder.num_tokens, 1), encoder.grid, num_tokens)
            columns = square_side(num_tokens)
        return cls(
            source=source,
            features=features,
            fingerprint=encoder.fingerprint,
            image_size=encoder.image_size,
            patch_size=max(1, encoder.image_size // columns),
            num_tokens=num_tokens or encoder.num_tokens,
            num_encoder_tokens=encoder.num_tokens,
            hidden_size=encoder.width,
        )


class FrozenTower(PreTrainedModel):
    """Pixels (B 3 H W in [0, 1]) -> z_u (B N D) as `last_hidden_state` and the only entry of
    `hidden_states`."""

    config_class = FrozenTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = ["encoder"]  # noqa: RUF012 - transformers' own attribute

    def __init__(self, config: FrozenTowerConfig):
        super().__init__(config)
        with torch.device("cpu"):  # from_pretrained builds on the meta device, where reading files is useless
            self.encoder = load_encoder(
                config.source, features=config.features, device="cpu", dtype=torch.float32
            )
        given = config.num_encoder_tokens or config.num_tokens
        if self.encoder.num_tokens != given:
            raise ValueError(
                f"encoder {config.source} gives {self.encoder.num_tokens} tokens, this tower was made for "
                f"{given}; load the encoder that it was made around"
            )
        self.encoder.eval().requires_grad_(False)
        for module in self.encoder.modules():
            module._is_hf_initialized = True  # else LLaVA's post_init draws these weights anew, silently
            module._non_persistent_buffers_set.clear()  # else from_pretrained leaves random memory in them
        # An empty tensor that follows every change of the model's dtype: what z_u is cast to.
        self.register_buffer("output_like", torch.zeros(1, device="cpu"))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing here is drawn at random."""

    def _apply(self, fn, recurse: bool = True):
        """Moves reach the encoder, changes of dtype do not: its features would drift from the ones that
        were cached."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype != tensor.dtype else moved

        self.encoder._apply(keep_dtype, recurse)
        self.output_like = fn(self.output_like)
        return self

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stays frozen and in evaluation mode whatever its owner calls (from_pretrained, which makes new
        parameters, calls it too)."""
        self.encoder.requires_grad_(False)
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """pixel_values (B 3 H W in [0, 1]; of an OpenVision 3 also cached latents, B C h w) -> z_u (B N D) in
        the model's dtype."""
        is_latent = pixel_values.shape[1] != 3
        encode = self.encoder.encode_latents if is_latent else self.encoder.encode
        z_u = encode(pixel_values.float())  # B N D
        if self.config.num_tokens != self.encoder.num_tokens:
            z_u = resize_grid(z_u, self.encoder.grid, self.config.num_tokens)
        z_u = z_u.to(self.output_like.dtype)
        return BaseModelOutputWithPooling(
            last_hidden_state=z_u, pooler_output=z_u.mean(1), hidden_states=(z_u,)
        )
