"""Cross-entropy of the supervised positions without the logits of all of them at once."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**26  # numbers held at once, 256 MB in float32: 2048 positions of a vocabulary of 32,768


def summed_loss(head: nn.Linear, hidden: Tensor, targets: Tensor, max_logits: int | None = None) -> Tensor:
    """The sum of the positions' cross-entropies in float32: hidden P D, the head's inputs; targets P.

    Beyond `max_logits` (None: MAX_LOGITS) the positions are taken in parts, whose logits are made again in
    the backward pass: one more product with the head in three, for memory that no longer grows with the
    positions.
    """
    part = max(1, (max_logits or MAX_LOGITS) // head.out_features)
    num_parts = -(-len(targets) // part)
    if hasattr(head.weight, "ds_id"):  # ZeRO-3 gathers the matrix at each call: as many on every process
        most = torch.tensor(num_parts, device=hidden.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        num_parts = int(most)
    if num_parts <= 1:
        return _summed(head, hidden, targets)
    ends = [slice(i * part, (i + 1) * part) for i in range(num_parts)]
    return sum(checkpoint(_summed, head, hidden[i], targets[i], use_reentrant=False) for i in ends)


def _summed(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="sum")
