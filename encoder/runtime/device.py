"""Where a stage computes, and in which numbers. No torch until a device is asked for: configs import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]  # auto: a GPU where there is one
Precision = Literal["auto", "fp32", "bf16"]  # auto: bf16 where the device multiplies in it


def require_device(device: str | torch.device) -> torch.device:
    """The device by its name.

    Raises: ValueError where it is a GPU and torch sees none.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU here; use device=cpu")
    return torch.device(device)


def settled_precision(precision: Precision, device: str | torch.device) -> Literal["fp32", "bf16"]:
    """fp32 or bf16, as given; `auto` is bf16 where the device has instructions for its products, else fp32.

    A CPU without them emulates products in bf16, and is many times slower than in fp32.
    """
    import torch

    if precision != "auto":
        return precision
    if require_device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def set_tf32(device: str | torch.device, is_allowed: bool) -> None:
    """Whether a GPU makes fp32 products and convolutions in TF32: ten bits of mantissa, several times the
    speed. A CPU's are as they are.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = is_allowed
        torch.backends.cudnn.allow_tf32 = is_allowed
