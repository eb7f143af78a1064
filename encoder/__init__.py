"""OpenVision 3: the encoder, its training, and the frozen-encoder contract that both bridges stand on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoder.frozen import FrozenEncoder
    from encoder.load import load_encoder

__all__ = ["FrozenEncoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for: the command line imports this package too."""
    if name in __all__:
        from encoder import frozen, load

        return frozen.FrozenEncoder if name == "FrozenEncoder" else load.load_encoder
    raise AttributeError(f"module 'encoder' has no attribute '{name}'")
