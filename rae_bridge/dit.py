"""RAE's two diffusion transformers: DiT-DH (a backbone and a wide, shallow head) and the plain LightningDiT.

Both map (x_t, t, y) to a velocity of x_t's shape. Letters: B batch, C latent channels, h w latent grid,
N = h * w tokens, D_e backbone width, D_d head width. State dicts are RAE's, key for key.
Under autocast the embeddings of x_t, t and y, the residual streams and the last linear map stay fp32: they
touch x_t and the velocity directly.

Source: RAE (arXiv:2510.11690; github.com/bytetriper/RAE at a4d18c4, stage2/models). Deviations: labels are
dropped by the trainer from its own generator, not inside the model; patch size 1, RMSNorm, SwiGLU, rotary
and fixed positions always, since every released model has them and the other branches of the original crash.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from encoder.models.pretrained import load_pretrained, write_pretrained
from rae_bridge.blocks import (
    Block,
    FinalLayer,
    LabelEmbedding,
    PatchEmbed,
    RotaryEmbedding,
    TimeEmbedding,
    sincos_positions,
)
from rae_bridge.flow import velocity_of_latents
from rae_bridge.shapes import DiTConfig


class DiT(nn.Module):
    """What the two models share: condition embeddings, files. `build_dit` makes one from a config."""

    name = "dit"  # in config.json

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size[0]
        self.pos_embed = nn.Parameter(sincos_positions(width, config.input_size)[None], requires_grad=False)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(config.num_classes, width, has_null=config.has_null_class)

    @property
    def num_classes(self) -> int:
        """Number of classes; also the index of the null class, where there is one."""
        return self.config.num_classes

    def make_blocks(self, part: int) -> list[Block]:
        """The blocks of the backbone (part 0) or of the head (part 1)."""
        config = self.config
        return [
            Block(
                config.hidden_size[part],
                config.num_heads[part],
                config.mlp_ratio,
                use_qknorm=config.use_qknorm,
            )
            for _ in range(config.depth[part])
        ]

    def make_rope(self, part: int) -> RotaryEmbedding:
        """The rotary tables of the backbone (part 0) or of the head (part 1)."""
        config = self.config
        return RotaryEmbedding(config.hidden_size[part] // config.num_heads[part], config.input_size)

    def velocity(self, tokens: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What the last layer says (B N C) as a velocity B C h w; see `DiTConfig.prediction`."""
        grid = to_grid(tokens, x_t)
        return grid if self.config.prediction == "velocity" else velocity_of_latents(grid, x_t, t)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, in fp32."""
        write_pretrained(folder, self.name, self.config, self.state_dict(), torch.float32)

    @staticmethod
    def from_pretrained(folder: Path | str) -> "DiT":
        """Read what `save_pretrained` wrote; the class follows from the config. Eval mode, fp32, CPU.

        Raises:
            FileNotFoundError: without the files.
            ValueError: damaged, of another model, or tensors that do not fit config.json.
        """
        return load_pretrained(build_dit, folder, DiT.name, DiTConfig).eval()


class LightningDiT(DiT):
    """The plain DiT: one stack of blocks, conditioned per sample on t + y."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size[0]
        self.x_embedder = PatchEmbed(config.in_channels, width)
        self.feat_rope = self.make_rope(0)
        self.blocks = nn.ModuleList(self.make_blocks(0))
        self.final_layer = FinalLayer(width, config.in_channels)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.zeros_(layer.bias)
        for block in self.blocks:  # unlike in DiT-DH, whose Linear layers keep torch's default
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.w12, block.mlp.w3):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x_t B C h w, t (B,) in [0, 1], y (B,) class indices -> velocity B C h w"""
        with torch.autocast(x_t.device.type, enabled=False):
            x = self.x_embedder(x_t) + self.pos_embed  # B N D
            condition = (self.t_embedder(t) + self.y_embedder(y))[:, None]  # B 1 D
        for block in self.blocks:
            x = block(x, condition, self.feat_rope)
        return self.velocity(self.final_layer(x, condition), x_t, t)


class DiTDH(DiT):
    """The backbone reads x_t and conditions, token by token through adaLN, a head that reads x_t again."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        backbone_width, head_width = config.hidden_size
        self.s_embedder = PatchEmbed(config.in_channels, backbone_width)
        self.x_embedder = PatchEmbed(config.in_channels, head_width)
        same = backbone_width == head_width
        self.s_projector = nn.Identity() if same else nn.Linear(backbone_width, head_width)
        self.enc_feat_rope = self.make_rope(0)
        self.dec_feat_rope = self.make_rope(1)
        self.blocks = nn.ModuleList(self.make_blocks(0) + self.make_blocks(1))
        self.final_layer = FinalLayer(head_width, config.in_channels)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x_t B C h w, t (B,) in [0, 1], y (B,) class indices -> velocity B C h w"""
        condition, _ = self.backbone(x_t, t, y)
        return self.velocity(self.head(condition, self.embed(x_t)), x_t, t)

    def backbone(
        self, x_t: Tensor, t: Tensor, y: Tensor, *, taps: Sequence[int] = (), added: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the head is conditioned on (B N D_e; the class reaches it only through this), and what comes
        out of the backbone's blocks `taps` (B N D_e each, in the order of `taps`).

        added: more about the time (B 1 D_e), on top of its embedding.

        Raises:
            ValueError: the backbone has no such block.
        """
        num_blocks = self.config.depth[0]
        if not all(0 <= tap < num_blocks for tap in taps):
            raise ValueError(f"taps {list(taps)} must be blocks of the backbone, 0 to {num_blocks - 1}")
        with torch.autocast(x_t.device.type, enabled=False):
            time = self.t_embedder(t)[:, None]  # B 1 D_e
            time = time if added is None else time + added
            # Each block's adaLN begins with SiLU again, so the backbone's condition is SiLU'd twice.
            condition = F.silu(time + self.y_embedder(y)[:, None])  # B 1 D_e
            s = self.s_embedder(x_t) + self.pos_embed  # B N D_e
        tapped = {}
        for i, block in enumerate(self.blocks[:num_blocks]):
            s = block(s, condition, self.enc_feat_rope)
            if i in taps:
                tapped[i] = s
        return F.silu(time + s), [tapped[tap] for tap in taps]

    def embed(self, x_t: Tensor) -> Tensor:
        """The head's tokens (B N D_d) of x_t; no absolute positions, only the head's rotary ones."""
        with torch.autocast(x_t.device.type, enabled=False):
            return self.x_embedder(x_t)

    def head(self, condition: Tensor, x: Tensor, *, added: Tensor | None = None) -> Tensor:
        """What the last layer says (B N C) of tokens x (B N D_d) under the backbone's condition (B N D_e).

        added: more to be conditioned on (B 1 D_d), on top of the projected condition.
        """
        s = self.s_projector(condition)  # B N D_d
        s = s if added is None else s + added
        for block in self.blocks[self.config.depth[0] :]:
            x = block(x, s, self.dec_feat_rope)
        return self.final_layer(x, s)


def build_dit(config: DiTConfig) -> DiT:
    """A new model: `DiTDH` for a config with two parts, `LightningDiT` for one with one."""
    return DiTDH(config) if len(config.hidden_size) == 2 else LightningDiT(config)


def to_grid(tokens: Tensor, like: Tensor) -> Tensor:
    """B N C -> B C h w, with the grid of `like`."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=like.shape[-2])
