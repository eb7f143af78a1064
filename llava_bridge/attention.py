"""How the language model attends while it trains: in fp32 on a CPU, and once for the words that all rows of
a batch begin with.

Letters: B rows, L tokens, P tokens of the beginning that the rows share, D width.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers import LlavaForConditionalGeneration as Llava
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava_bridge.config import LlavaConfig
from llava_bridge.labels import IGNORE

WIDE = "sdpa_fp32"  # its name among transformers' kinds of attention, in this process alone
_LEAST_SHARE = 0.1  # of a row: below it two passes cost more than they save


def attend_in_fp32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings
) -> tuple[Tensor, None]:
    """transformers' `sdpa` on fp32 copies of bf16 queries, keys and values; the result as they came.

    torch's bf16 kernel for CPUs takes two to four times as long, forward and backward (2.14, AMX).
    """
    wide = (tensor.float() for tensor in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):  # it would make them bf16 again
        output, weights = sdpa_attention_forward(module, *wide, attention_mask, **settings)
    return output.to(query.dtype), weights


def choose_attention(model: Llava, config: LlavaConfig, zero_stage: int | None) -> None:
    """Set how the model attends while it trains.

    In bf16 on a CPU, `sdpa` is done in fp32. Words that all rows begin with are run once, except where a
    layer may not run twice in a pass with a cache between (compiled, checkpointed, split by ZeRO-3) or draws
    at random (LoRA's dropout).
    """
    is_bf16 = config.chosen_precision == "bf16"
    if is_bf16 and config.attention == "sdpa" and not torch.cuda.is_available():
        AttentionInterface.register(WIDE, attend_in_fp32)
        AttentionMaskInterface.register(WIDE, sdpa_mask)
        model.model.language_model.config._attn_implementation = WIDE
    runs_whole = config.compile or config.gradient_checkpointing
    model.shares_beginnings = not runs_whole and config.lora_rank is None and zero_stage != 3


def shared_length(input_ids: Tensor, labels: Tensor, image_id: int) -> int:
    """P: how many tokens all rows (B L) begin with, before any picture and before any supervised token's
    predecessor, whose state the loss reads. 0 where it is not worth it."""
    is_shared = (input_ids == input_ids[:1]).all(0) & (input_ids[0] != image_id)
    is_shared[:-1] &= (labels[:, 1:] == IGNORE).all(0)
    is_shared[-1] = False
    length = int(is_shared.int().cumprod(0).sum())
    return length if len(input_ids) > 1 and length >= _LEAST_SHARE * input_ids.shape[1] else 0


def run_beginning(model: Llava, beginning: Tensor, num_rows: int) -> DynamicCache:
    """Keys and values, with gradients, of P token ids for each of `num_rows` rows, from a pass over one.

    What a causal model makes of a beginning does not depend on what follows, so this is the same for all.
    """
    language_model = model.model.language_model
    cache = DynamicCache(config=language_model.config)
    language_model(input_ids=beginning[None], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(num_rows)
    return cache
