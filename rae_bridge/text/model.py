"""DiT-DH told a text: text tokens in the backbone's context, or the text's one vector beside the time.

Letters: B batch, C latent channels, h w latent grid, N = h * w image tokens, L text tokens, D_e backbone
width, D_t width of a text token.

Source: RAEv2 (arXiv:2605.18324; nanovisionx/RAEv2 at 8a0d238): condition tokens come after the image tokens,
the rotary embedding leaves them as they are, padded ones are masked as keys, and the head sees text only
through the backbone's image tokens. Deviations: the blocks keep adaLN, of the time alone, so that those of a
class-conditional DiT-DH can be taken over (RAEv2's backbone has none and four time tokens); a text's width is
brought to the backbone's by an RMSNorm and one Linear, as there.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from encoder.models.pretrained import load_pretrained
from rae_bridge.blocks import Attention, Block, RMSNorm, RotaryEmbedding
from rae_bridge.dit import DiTDH
from rae_bridge.shapes import DiTConfig
from rae_bridge.text.bank import TextBank
from rae_bridge.text.config import TextShape
from rae_bridge.text.encoders import Text

_CLASSES = "y_embedder.embedding_table.weight"  # what a class-conditional model has and this one has not


class TextAttention(Attention):
    """Self-attention over image and text tokens: rotary positions for the first, none for the others."""

    def forward(self, x: Tensor, rope: RotaryEmbedding, is_visible: Tensor) -> Tensor:
        """x B N+L D; is_visible B N+L: which tokens are looked at."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = (_turned(norm(each), rope) for norm, each in ((self.q_norm, q), (self.k_norm, k)))
        # on a CPU in fp32 at least, for `rae_bridge.blocks.attend`'s reason
        dtype = torch.promote_types(v.dtype, torch.float32) if v.device.type == "cpu" else v.dtype
        with torch.autocast(v.device.type, enabled=False):
            seen = F.scaled_dot_product_attention(
                q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=is_visible[:, None, None]
            )
        return self.proj(rearrange(seen, "b h n d -> b n (h d)"))


def _turned(x: Tensor, rope: RotaryEmbedding) -> Tensor:
    """B H N+L D: the first N by their places, the rest as they are."""
    num_image = len(rope.freqs_cos)
    image = rope(x[:, :, :num_image])
    return torch.cat([image, x[:, :, num_image:].to(image.dtype)], dim=2)


class TextBlock(Block):
    """A block of the backbone whose sequence goes on with text tokens; tensors are those of `Block`."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, *, use_qknorm: bool) -> None:
        super().__init__(width, num_heads, mlp_ratio, use_qknorm=use_qknorm)
        self.attn = TextAttention(width, num_heads, use_qknorm=use_qknorm)

    def forward(self, x: Tensor, condition: Tensor, rope: RotaryEmbedding, is_visible: Tensor) -> Tensor:
        """x B N+L D, condition B 1 D, is_visible B N+L -> B N+L D"""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            condition
        ).chunk(6, dim=-1)
        seen = self.attn(self.norm1.modulate(x, shift_attn, scale_attn), rope, is_visible)
        x = torch.addcmul(x, gate_attn, seen)
        return torch.addcmul(x, gate_mlp, self.mlp(self.norm2.modulate(x, shift_mlp, scale_mlp)))


class TextEmbedding(nn.Module):
    """States of a text encoder -> the backbone's width. The norm comes first: language models' states have
    channels that outweigh all others."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(text_width)
        self.linear = nn.Linear(text_width, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(self.norm(states))


class TextDiT(DiTDH):
    """DiT-DH with text in place of the class. `base` stands where the class embedding was: zero, or what a
    class-conditional model has for no class."""

    name = "text_dit"

    def __init__(self, config: TextShape) -> None:
        super().__init__(config)
        del self.y_embedder
        width = config.hidden_size[0]
        self.base = nn.Parameter(torch.zeros(width))
        if config.sees_tokens:
            self.text_embedder = TextEmbedding(config.text_width, width)
        if config.sees_pooled:
            self.pooled_embedder = TextEmbedding(config.pooled_width, width)

    def make_blocks(self, part: int) -> list[Block]:
        """As `DiT.make_blocks`; with text tokens, the backbone's take them in."""
        config = self.config
        if part != 0 or not config.sees_tokens:
            return super().make_blocks(part)
        about = (config.hidden_size[0], config.num_heads[0], config.mlp_ratio)
        return [TextBlock(*about, use_qknorm=config.use_qknorm) for _ in range(config.depth[0])]

    def forward(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """x_t B C h w, t (B,) in [0, 1], text of B -> velocity B C h w"""
        return self.velocity(self.head(self.backbone(x_t, t, text), self.embed(x_t)), x_t, t)

    def backbone(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """What the head is conditioned on (B N D_e): text reaches it only through this."""
        with torch.autocast(x_t.device.type, enabled=False):
            time = self.t_embedder(t)[:, None]  # B 1 D_e
            told = self.base
            if self.config.sees_pooled:
                told = told + self.pooled_embedder(text.pooled)[:, None]  # B 1 D_e
            condition = F.silu(time + told)
            s = self.s_embedder(x_t) + self.pos_embed  # B N D_e
            if self.config.sees_tokens:
                s = torch.cat([s, self.text_embedder(text.tokens)], dim=1)  # B N+L D_e
        num_image = len(self.enc_feat_rope.freqs_cos)
        if self.config.sees_tokens:
            is_visible = F.pad(text.mask, (num_image, 0), value=True)  # image tokens always are
            for block in self.blocks[: self.config.depth[0]]:
                s = block(s, condition, self.enc_feat_rope, is_visible)
        else:
            for block in self.blocks[: self.config.depth[0]]:
                s = block(s, condition, self.enc_feat_rope)
        return F.silu(time + s[:, :num_image])

    @staticmethod
    def from_pretrained(folder: Path | str) -> "TextDiT":
        """As `DiT.from_pretrained`."""
        return load_pretrained(TextDiT, folder, TextDiT.name, TextShape).eval()


class Captioned(nn.Module):
    """A `TextDiT` with the texts that it can be told: `(x_t, t, y)`, y (B,) being a text's number, as the
    flow's batches, losses, guidance and samplers know a model of classes. The null class is the empty
    text."""

    def __init__(self, model: TextDiT, bank: TextBank) -> None:
        """Raises: ValueError: the texts are of other widths than the model's."""
        super().__init__()
        shape, about = model.config, bank.about
        if (shape.text_width, shape.pooled_width) != (about["text_width"], about["pooled_width"]):
            raise ValueError(
                f"the model takes texts of {shape.text_width} and {shape.pooled_width} numbers; "
                f"{about['source']} gives {about['text_width']} and {about['pooled_width']}"
            )
        self.model, self.bank = model, bank

    @property
    def config(self) -> TextShape:
        return self.model.config

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def num_classes(self) -> int:
        """How many texts there are; also the number of the empty one."""
        return self.bank.null

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x_t, t, self.bank.take(y).to(x_t.device))


def take_over(model: TextDiT, shape: DiTConfig, weights: Mapping[str, Tensor]) -> None:
    """Begin from a class-conditional DiT-DH: all of it but its classes, of which the null one becomes `base`
    (their mean, where there is none). What is new is the text's embedding.

    It does not start as that model without a class: softmax gives new keys of any size a share of the
    attention; it does where every text token is masked.

    Raises: ValueError: it is a model of another size.
    """
    own = {each: getattr(model.config, each) for each in ("hidden_size", "depth", "num_heads", "mlp_ratio",
           "use_qknorm", "input_size", "in_channels", "prediction")}  # fmt: skip
    other = [f"{name}={getattr(shape, name)}, not {value}" for name, value in own.items()
             if getattr(shape, name) != value]  # fmt: skip
    if other:
        raise ValueError(f"the class-conditional model is another: {'; '.join(other)}")
    weights = dict(weights)
    classes = weights.pop(_CLASSES)
    weights["base"] = classes[-1] if shape.has_null_class else classes.mean(dim=0)
    model.load_state_dict({**model.state_dict(), **weights})
