"""Low-rank adapters on the language model (peft), merged into its matrices when the training ends: what is
saved is a plain LLaVA folder. Beside it the adapters are kept as peft writes them, for who would rather ship
those few megabytes, or train on.

Source: LLaVA c121f04, scripts/v1_5/finetune_lora.sh and find_all_linear_names: rank 128, alpha 256, dropout
0.05 on every linear layer of the language model but its head.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from encoder.runtime.checkpoint import save_tensors

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_PROJECTOR = "multi_modal_projector"
_NEWLINE = ".image_newline"  # LLaVA-NeXT's, a parameter of no module: peft loads it by its name
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


def save_adapter(
    state: Mapping[str, Tensor], folder: Path, base: str, rank: int, alpha: float, dropout: float
) -> None:
    """Write the adapters in peft's own layout, with the projector whole, which is trained beside them:
    `PeftModel.from_pretrained(model, folder)` on the model that the training began with is the merged one.

    state: the model's whole matrices by name, not merged. base: where that model lies, as peft notes it.
    """
    language_model = rf".*\.language_model\..*\.(?:{'|'.join(_LINEAR)})"  # a tower may have such names too
    options = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=language_model,
        modules_to_save=[_PROJECTOR],
        bias="none",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    options.save_pretrained(folder)
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": tensor
        for name, tensor in state.items()
        if ".lora_" in name or f".{_PROJECTOR}." in name or name.endswith(_NEWLINE)
    }
    save_tensors(folder / SAFETENSORS_WEIGHTS_NAME, tensors)
