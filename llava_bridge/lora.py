"""Low-rank adapters on the language model (peft), merged into its matrices when the training ends: what is
saved is a plain LLaVA folder.

Source: LLaVA c121f04, scripts/v1_5/finetune_lora.sh and find_all_linear_names: rank 128, alpha 256, dropout
0.05 on every linear layer of the language model but its head.
"""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_BASE = ".base_layer."  # where peft keeps the layer under an adapter


def add_lora(language_model: nn.Module, rank: int, alpha: float, dropout: float) -> list[nn.Parameter]:
    """Put adapters beside the blocks' linear layers, in place; returns their parameters.

    The second matrix of each is zero, so the model's outputs are as before.
    """
    options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_LINEAR, bias="none")
    inject_adapter_in_model(options, language_model)
    return [parameter for name, parameter in language_model.named_parameters() if "lora_" in name]


@torch.no_grad()
def merge_lora(state: dict[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """The model's whole matrices by name with each adapter's product added to its layer's (in float32), under
    the names of the model without adapters."""
    merged = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if "lora_" not in name}
    for name, base in state.items():
        if name.endswith(f"{_BASE}weight"):  # a bias (Qwen's) has no adapter
            layer = name.removesuffix(f"{_BASE}weight")
            down, up = (state[f"{layer}.lora_{which}.default.weight"].float() for which in "AB")
            merged[f"{layer}.weight"] = (base + alpha / rank * (up @ down)).to(base.dtype)
    return merged
