"""The language model that stage 1 starts from: which kinds LLaVA can hold, how long a text it was made for,
and its tokenizer with a picture mark."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from encoder.data.records import IMAGE

_PAD = "<pad>"
# What some kinds do to their logits, which LLaVA's own head would leave out
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
_STRETCHED = ("linear", "dynamic")  # kinds of rope whose max_position_embeddings is what they stretch
_KINDS = "kinds that work: Llama, Vicuna, Mistral, Qwen2, Qwen3, Gemma 1 and what is built like them"


def check_language_model(llm: Path | str) -> None:
    """Build the language model without weights and compare its parts with those that LLaVA makes of it.

    Raises:
        ValueError: LLaVA would lose or change a part of it.
    """
    config = AutoConfig.from_pretrained(llm)
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(config)
        body = AutoModel.from_config(config)
    reason = _misfit(language_model, body)
    if reason is not None:
        raise ValueError(f"language model {llm} ({config.model_type}) does not fit LLaVA: {reason}; {_KINDS}")


def _misfit(language_model: nn.Module, body: nn.Module) -> str | None:
    own, head = getattr(language_model, "model", None), getattr(language_model, "lm_head", None)
    if not isinstance(own, type(body)) or not isinstance(head, nn.Linear):
        return "it is not a `model` under an `lm_head`"
    if not hasattr(own, "layers") or not hasattr(own, "embed_tokens"):
        return "its `model` has no `embed_tokens` and `layers`"
    if head.bias is not None:
        return "its head has a bias"
    changed = [key for key in _LOGIT_SETTINGS if getattr(language_model.config, key, None) not in (None, 1.0)]
    return f"it changes its logits ({changed[0]})" if changed else None


def check_positions(folder: Path | str, longest: int) -> None:
    """Compare a stage's longest sample, its picture's tokens among it, with what the language model can tell
    apart. folder: of the language model, or of what stage 1 wrote.

    Raises:
        ValueError: it has more tokens than the language model has positions.
    """
    config = AutoConfig.from_pretrained(folder).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)  # None: it has none of its own
    rope = getattr(config, "rope_parameters", None) or {}
    if positions is not None and rope.get("rope_type") in _STRETCHED:
        positions = int(positions * rope.get("factor", 1.0))
    if positions is not None and longest > positions:
        raise ValueError(
            f"the longest sample has {longest} tokens, its picture's among them, and the language model of "
            f"{folder} has {positions} positions; set max_length={positions}, or take another language model"
        )


def open_tokenizer(llm: Path | str) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, with a token for a picture and one that fills rows up."""
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": _PAD})
    return tokenizer
