"""Released RAE weights in: DiT-DH and LightningDiT state dicts, pixel decoders.

Files are read as safetensors, or by torch with `weights_only`, never by running code from them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from encoder.checkpoint import load, load_tensors
from rae_bridge.config import DiTConfig, dit_config
from rae_bridge.dit import DiT, build_dit, load_strict


def load_dit(path: Path | str, config: DiTConfig | Mapping[str, Any]) -> DiT:
    """A DiT-DH, or a LightningDiT when `hidden_size` has one entry, with a file's weights: fp32, eval, CPU.

    path: .pt or .safetensors; a bare state dict or one under the key "ema" (other top-level keys ignored).
    config: `DiTConfig`, or a mapping with RAE's own parameter names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state dict in it, or the first key that differs from the configured model.
    """
    model = build_dit(dit_config(config))
    load_strict(model, read_state(Path(path)), Path(path))
    return model.float().eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under "ema" if that key is there, else the file itself."""
    content = load_tensors(path) if path.suffix == ".safetensors" else load(path)
    state = content.get("ema", content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(map(str, content))
        raise ValueError(f"{path}: neither a state dict nor one under 'ema'; its keys: {keys}")
    return state
