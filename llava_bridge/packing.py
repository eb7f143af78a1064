"""Attention inside packed rows, one sample at a time: what the block-diagonal mask gives, without computing
the pairs of tokens that it throws away.

Importing it registers the attention function PER_SAMPLE with transformers.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PER_SAMPLE = "per_sample"  # its name among transformers' kinds of attention


def sample_lengths(position_ids: Tensor) -> list[int]:
    """Tokens of each sample in packed rows, row after row, from positions (B L) that restart with every
    sample; a row's padding counts as one.

    Raises:
        ValueError: a row does not start with a sample's first token.
    """
    if (position_ids[:, 0] != 0).any():
        raise ValueError("packed rows must start at position 0")
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    end = torch.tensor([position_ids.numel()], device=starts.device)
    return torch.diff(starts, append=end).tolist()


def attend_per_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sample_lengths: list[int] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Causal attention of every sample over itself; query B H L C, key and value with as many heads or fewer;
    the result B L H C. On a CPU in float32: torch's kernel for bfloat16 is slower there and rounds more.

    Raises:
        ValueError: a mask is given, or no lengths: this is for packed rows alone.
    """
    if attention_mask is not None or sample_lengths is None:
        raise ValueError(f"attention '{PER_SAMPLE}' takes packed rows (position_ids, no attention_mask)")
    num_rows, dtype = query.shape[0], query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        query, key, value = query.float(), key.float(), value.float()
    rows = (rearrange(x, "b h l c -> 1 h (b l) c").split(sample_lengths, 2) for x in (query, key, value))
    settings = {"dropout": dropout, "scaling": scaling, "is_causal": True}
    with torch.autocast(query.device.type, enabled=False):  # it would make float32 bfloat16 again
        samples = [
            sdpa_attention_forward(module, *sample, None, **settings)[0] for sample in zip(*rows, strict=True)
        ]
    return rearrange(torch.cat(samples, 1), "1 (b l) h c -> b l h c", b=num_rows).to(dtype), None


def attend_within_samples(model: LlavaForConditionalGeneration) -> None:
    """Let the language model take packed rows, and nothing else, from now on."""
    model.model.language_model.set_attn_implementation(PER_SAMPLE)


AttentionInterface.register(PER_SAMPLE, attend_per_sample)
