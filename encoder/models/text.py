"""The text towers: TextEncoder (contrastive), and the caption decoder, Captioner or ParallelCaptioner.

Letters: L text tokens, N image tokens, T alt-text tokens, Q queries, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from encoder.models.shapes import CaptionerShape, TextShape
from encoder.models.vit import EPS, Transformer


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

    def tokens(self, input_ids: Tensor) -> Tensor:
        """input_ids (B L) -> text tokens (B L D), before the final norm."""
        x = self.token_embedding(input_ids) + self.positional_embedding  # B L D
        return self.transformer(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """Text tokens (B L D) -> features (B E), from the last place."""
        return self.head(self.ln_final(tokens[:, -1]))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.pool(self.tokens(input_ids))


def prefix_mask(num_prefix: int, num_words: int, device: torch.device) -> Tensor:
    """True where a row may look (P+L P+L): prefix at the prefix, words at the prefix and at words up to
    themselves."""
    mask = torch.ones(num_prefix + num_words, num_prefix + num_words, dtype=torch.bool, device=device).tril()
    mask[:num_prefix, :num_prefix] = True
    return mask


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
        x = self.transformer(x, prefix_mask(num_image, words.shape[1], x.device))[:, num_image:]
        return self.head(self.ln_final(x))


class ParallelCaptioner(nn.Module):
    """z_u (B N D) and alt-text tokens (B T D') -> logits (B Q V): all words of the dense caption at once.

    One stack over [image | alt text | queries]; the prefix sees itself, a query the prefix and the queries up
    to itself. It never sees a true word of the caption, and no positions are added.
    Source: UCSC-VLAA/OpenVision@6c24e45, text_decoder.py (`fusion_style` concat; the CLIPS form).
    """

    def __init__(self, shape: CaptionerShape, vocab_size: int, image_width: int, text_width: int):
        super().__init__()
        self.shape = shape
        self.image_proj = nn.Linear(image_width, shape.width, bias=False)
        self.text_proj = nn.Linear(text_width, shape.width, bias=False)
        self.queries = nn.Parameter(torch.randn(shape.context_length, shape.width))
        self.transformer = Transformer(shape.width, shape.layers, shape.head_width, is_text=True)
        self.ln_final = nn.LayerNorm(shape.width, eps=EPS)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        nn.init.normal_(self.image_proj.weight, std=image_width**-0.5)
        nn.init.normal_(self.text_proj.weight, std=text_width**-0.5)
        nn.init.normal_(self.head.weight, std=shape.width**-0.5)

    def forward(self, z_u: Tensor, text_tokens: Tensor, num_words: int) -> Tensor:
        """Logits (B num_words V) of the first `num_words` places; later queries do not change them."""
        image, text = self.image_proj(z_u), self.text_proj(text_tokens)
        queries = self.queries[:num_words].to(image.dtype).expand(len(z_u), -1, -1)
        x = torch.cat([image, text, queries], dim=1)  # B N+T+Q D
        num_prefix = x.shape[1] - num_words
        x = self.transformer(x, prefix_mask(num_prefix, num_words, x.device))[:, num_prefix:]
        return self.head(self.ln_final(x))
