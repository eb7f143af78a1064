"""The text towers: TextEncoder (contrastive) and Captioner (autoregressive caption decoder).

Letters: L text tokens, N image tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder.options import CaptionerShape, TextShape
from encoder.vit import EPS, Transformer


class TextEncoder(nn.Module):
    """input_ids (B L) -> features (B E), not normalised.

    Bidirectional, without a padding mask; the feature is read at the last place, where [CLS] stands.
    Source: UCSC-VLAA/OpenVision@6c24e45, text_transformer.py; OpenVision 3 "generally follows OpenVision".
    """

    def __init__(self, shape: TextShape, vocab_size: int, embed_dim: int):
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(vocab_size, shape.width)
        self.positional_embedding = nn.Parameter(torch.randn(shape.context_length, shape.width) * 0.01)
        self.transformer = Transformer(shape.width, shape.layers, shape.head_width, is_text=True)
        self.ln_final = nn.LayerNorm(shape.width, eps=EPS)
        self.head = nn.Linear(shape.width, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=shape.width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.token_embedding(input_ids) + self.positional_embedding  # B L D
        x = self.transformer(x)
        return self.head(self.ln_final(x[:, -1]))


class Captioner(nn.Module):
    """z_u (B N D) and input_ids (B L) -> logits (B L V): each place sees all image tokens and earlier words.

    One stack over [image tokens | words]; image tokens see each other only, words the image and the past.
    Source: arXiv:2601.15369v2, Sec. 3.2 ("autoregressive"); the layout follows OpenVision 2's decoder
    (UCSC-VLAA/OpenVision@6c24e45). Deviation: learned positions for the words; OpenVision 2 has none.
    """

    def __init__(self, shape: CaptionerShape, vocab_size: int, image_width: int):
        super().__init__()
        self.shape = shape
        self.image_proj = nn.Linear(image_width, shape.width, bias=False)
        self.token_embedding = nn.Embedding(vocab_size, shape.width)
        self.positional_embedding = nn.Parameter(torch.randn(shape.context_length, shape.width) * 0.01)
        self.transformer = Transformer(shape.width, shape.layers, shape.head_width, is_text=True)
        self.ln_final = nn.LayerNorm(shape.width, eps=EPS)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        nn.init.normal_(self.image_proj.weight, std=image_width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=shape.width**-0.5)

    def forward(self, z_u: Tensor, input_ids: Tensor) -> Tensor:
        num_image = z_u.shape[1]
        words = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        x = torch.cat([self.image_proj(z_u).to(words.dtype), words], dim=1)  # B N+L D
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:num_image, :num_image] = True
        x = self.transformer(x, mask)[:, num_image:]
        return self.head(self.ln_final(x))
