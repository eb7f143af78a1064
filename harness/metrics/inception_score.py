"""Inception score: how sure a classifier is of each picture, and how many classes the set covers. It is the
IS only with the 2015 Inception logits. Letters: N pictures, K classes.
"""

import dataclasses

import torch
from torch import Tensor

from encoder.metrics.checks import check_features


@dataclasses.dataclass(frozen=True)
class Score:
    """Mean and standard deviation over the chunks."""

    mean: float
    std: float


def inception_score(logits: Tensor, num_chunks: int = 10) -> Score:
    """exp of the mean KL divergence between p(class | picture) and p(class), over consecutive chunks of
    logits (N K).

    The pictures stay in their order, as in ADM's evaluator (torch-fidelity shuffles them by default).

    Raises:
        ValueError: fewer pictures than chunks, or a picture's logits are not finite.

    Source: Salimans et al., arXiv:1606.03498v1, Sec. 4;
    torch_fidelity.metric_isc.isc_features_to_metric(shuffle=False).
    """
    check_features(logits, "inception score, logits")
    num = len(logits)
    if not 1 <= num_chunks <= num:
        raise ValueError(f"inception score: {num} pictures do not fill {num_chunks} chunks")
    log_p = logits.double().log_softmax(dim=1)  # N K
    scores = []
    for i in range(num_chunks):
        chunk = log_p[i * num // num_chunks : (i + 1) * num // num_chunks]
        p = chunk.exp()
        divergence = p * (chunk - p.mean(dim=0).log())  # N K
        # a class that a sure classifier gives no chance at all adds nothing: 0 log 0 is 0, not NaN
        scores.append(divergence.where(p > 0, 0.0).sum(dim=1).mean().exp())
    return Score(mean=float(torch.stack(scores).mean()), std=float(torch.stack(scores).std(correction=0)))
