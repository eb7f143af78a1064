"""What a judge's network gives for one batch of pictures."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Seen:
    """Features of one batch; what the network does not have is None."""

    pooled: Tensor  # N D
    logits: Tensor | None = None  # N K, without bias, as the Inception score is defined
    spatial: Tensor | None = None  # N S: sFID's
