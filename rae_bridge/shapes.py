"""The shapes of this package's models, under RAE's own names, so that its configs load as they are. No torch
here: the command line reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from encoder.runtime.config import ConfigError, load

Prediction = Literal["velocity", "latents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTSize:
    """Depths and widths, one entry per part: (backbone, head) is DiT-DH, (backbone,) is LightningDiT."""

    hidden_size: tuple[int, ...] = (1152, 2048)
    depth: tuple[int, ...] = (28, 2)
    num_heads: tuple[int, ...] = (16, 16)
    mlp_ratio: float = 4.0
    use_qknorm: bool = False

    def __post_init__(self) -> None:
        parts = (self.hidden_size, self.depth, self.num_heads)
        if {len(part) for part in parts} not in ({1}, {2}):
            raise ValueError(
                "hidden_size {}, depth {} and num_heads {} must have two entries each (backbone, head), "
                "or one each for LightningDiT".format(*parts)
            )
        for width, heads in zip(self.hidden_size, self.num_heads, strict=True):
            if width % (4 * heads):
                raise ValueError(
                    f"hidden_size {width} must be a multiple of 4 x num_heads = {4 * heads} "
                    "(rotary positions split each head over two axes of channel pairs)"
                )


# name: backbone width, depth, heads. Source: RAE's configs/stage2; the head is 2048 x 2 with 16 heads in all.
_BACKBONES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
DIT_SIZES = {
    f"DiT-{name}": DiTSize(hidden_size=(width,), depth=(depth,), num_heads=(heads,))
    for name, (width, depth, heads) in _BACKBONES.items()
} | {
    f"DiTDH-{name}": DiTSize(hidden_size=(width, 2048), depth=(depth, 2), num_heads=(heads, 16))
    for name, (width, depth, heads) in _BACKBONES.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig(DiTSize):
    """A whole model: its size, and the latents and classes it is for."""

    input_size: int = 16  # tokens along each side of the latent grid
    in_channels: int = 768  # width of a token
    num_classes: int = 1000
    class_dropout_prob: float = 0.1  # above 0, the label table has a null row of index num_classes
    # what the last layer means: the velocity (RAE), or the latents, from which the velocity follows
    prediction: Prediction = "velocity"

    @property
    def has_null_class(self) -> bool:
        return self.class_dropout_prob > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionShape(DiTConfig):
    """A student of Transition Matching Distillation: its teacher's shape, and how its head sees the inner
    flow; see `rae_bridge.transition`."""

    fusion: Literal["gated", "concat"] = "gated"
    # what the mean velocity of the inner flow starts from: the state w_s, or the inner noise (the paper's)
    anchor: Literal["state", "noise"] = "state"


_RAE_FIXED = {
    **dict.fromkeys(("use_swiglu", "use_rope", "use_rmsnorm", "use_pos_embed", "use_gembed"), True),
    **dict.fromkeys(("wo_shift", "learn_sigma"), False),
}


def dit_config(source: DiTConfig | Mapping[str, Any]) -> DiTConfig:
    """Our config, or a mapping with the parameter names of RAE's `DiTwDDTHead` or `LightningDiT`.

    Raises:
        ConfigError: an unknown name, or a variant that no released model uses (each named).
    """
    if isinstance(source, DiTConfig):
        return source
    values = _pop_fixed(dict(source), _RAE_FIXED)
    patch_size = values.pop("patch_size", 1)
    if patch_size not in (1, [1, 1], (1, 1)):
        raise ConfigError(f"RAE config: patch_size={patch_size} is not supported, only 1")
    for key in ("hidden_size", "depth"):
        if isinstance(values.get(key), int):
            values[key] = (values[key],)
    if isinstance(values.get("num_heads"), int):  # RAE: one number stands for both parts
        values["num_heads"] = (values["num_heads"],) * len(values.get("hidden_size", (0, 0)))
    return load(DiTConfig, values, name="RAE config")


def _pop_fixed(values: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without the keys of `fixed`, each of which must have the one value of all released models."""
    for key, only in fixed.items():
        if (got := values.pop(key, only)) != only:
            raise ConfigError(f"RAE config: {key}={got} is not supported, only {only}")
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSize:
    """Width and depth of a pixel decoder, under RAE's names (transformers' ViT-MAE). Defaults: ViT-XL."""

    decoder_hidden_size: int = 1152
    decoder_num_hidden_layers: int = 28
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 4096

    def __post_init__(self) -> None:
        width, heads = self.decoder_hidden_size, self.decoder_num_attention_heads
        if width % heads or width % 4:
            name = "decoder_num_attention_heads"
            raise ValueError(f"decoder_hidden_size {width} must be a multiple of 4 and of {name} {heads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(DecoderSize):
    """A whole pixel decoder: its size, and the tokens and pictures it is for."""

    hidden_size: int = 768  # width of the encoder's tokens
    image_size: int = 256  # pixels on a side of what it draws
    patch_size: int = 16  # pixels on a side that one token draws
    layer_norm_eps: float = 1e-12
    # the encoder's own preprocessing, undone at the end (ImageNet's here)
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        DecoderSize.__post_init__(self)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Tokens on a side."""
        return self.image_size // self.patch_size


_MAE_FIXED = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3, "hidden_dropout_prob": 0.0}
_MAE_FIXED |= {"attention_probs_dropout_prob": 0.0}
# what ViT-MAE's config says of its own encoder, its training and its file
_MAE_UNUSED = ("_name_or_path", "architectures", "initializer_range", "intermediate_size", "mask_ratio")
_MAE_UNUSED += ("model_type", "norm_pix_loss", "num_attention_heads", "num_hidden_layers", "torch_dtype")
_MAE_UNUSED += ("transformers_version", "dtype")


def decoder_config(source: DecoderConfig | Mapping[str, Any]) -> DecoderConfig:
    """Our config, or a mapping with the names of RAE's decoder configs.

    RAE's own files leave hidden_size, patch_size and image_size to the encoder: the mapping must set them.

    Raises:
        ConfigError: an unknown name, or a variant that RAE does not have (each named).
    """
    if isinstance(source, DecoderConfig):
        return source
    values = {key: value for key, value in source.items() if key not in _MAE_UNUSED}
    return load(DecoderConfig, _pop_fixed(values, _MAE_FIXED), name="RAE decoder config")
