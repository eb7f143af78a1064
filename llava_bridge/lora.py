"""Low-rank adapters on the language model (peft), merged into its matrices when the training ends: what is
saved is a plain LLaVA folder.

Source: LLaVA c121f04, scripts/v1_5/finetune_lora.sh and find_all_linear_names: rank 128, alpha 256, dropout
0.05 on every linear layer of the language model but its head.
"""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(language_model: nn.Module, rank: int, alpha: float, dropout: float) -> list[nn.Parameter]:
    """Put adapters beside the blocks' linear layers, in place; returns their parameters.

    The second matrix of each is zero, so the model's outputs are as before.
    """
    options = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_LINEAR, bias="none")
    inject_adapter_in_model(options, language_model)
    return [parameter for name, parameter in language_model.named_parameters() if "lora_" in name]


@torch.no_grad()
def merge_lora(language_model: nn.Module) -> None:
    """Add each adapter's product to its layer's matrix (in float32) and remove the adapter."""
    for parent in list(language_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                dtype = base.weight.dtype
                delta = layer.float().get_delta_weight("default")
                base.weight.data = (base.weight.data + delta).to(dtype)
                setattr(parent, name, base.to(dtype))
