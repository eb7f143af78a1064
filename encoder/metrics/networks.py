"""The feature networks that judge pictures, by name. No torch at import: the command line asks for names.

Each maps pictures (N 3 H W, uint8) to a `Seen`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LITE0, INCEPTION = "lite0", "inception"


def check_weights(network: str, weights: str | None) -> None:
    """Raises: ValueError if a weights file is named for a network that takes none."""
    if weights is not None and network != INCEPTION:
        raise ValueError(f"weights are for {INCEPTION}, not for {network}")


def load_network(name: str, weights: str | None = None) -> "nn.Module":
    """`lite0`, `inception` (its file is `weights`: a path, None: torch.hub's place, or `download`), or an
    instance of `module:Class`.

    Raises:
        FileNotFoundError: Inception's weights are not there.
        ValueError: they are damaged, unsafe or of another network, or the name leads nowhere.
    """
    check_weights(name, weights)
    if name == LITE0:
        from encoder.metrics.lite0 import Lite0

        return Lite0()
    if name == INCEPTION:
        from encoder.metrics.inception import Inception

        return Inception.load(weights)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        choices = f"{LITE0}, {INCEPTION}, or an importable module:Class that is made without arguments"
        raise ValueError(f"judge network '{name}' is not {choices} ({error})") from None
