"""Where a stage computes."""

import torch


def require_device(device: str | torch.device) -> torch.device:
    """The device by its name.

    Raises: ValueError where it is a GPU and torch sees none.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU here; use device=cpu")
    return torch.device(device)
