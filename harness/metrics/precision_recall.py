"""Improved precision and recall: how many generated pictures lie among the real ones, and the other way
round. Letters: N pictures, D feature width.
"""

import dataclasses

import torch
from torch import Tensor

from encoder.metrics.checks import check_features, check_widths

_TILE_BYTES = 64_000_000  # of distances at a time


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float  # of the generated pictures, inside the real pictures' manifold: fidelity
    recall: float  # of the real pictures, inside the generated pictures' manifold: diversity


def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = 3, tile: int | None = None
) -> PrecisionRecall:
    """Precision and recall of generated against real features (N D each), by balls to the k-th nearest
    neighbour.

    Distances are made `tile` rows at a time (None: as many as fill 64 MB): memory is tile x N, not N x N.

    Raises:
        ValueError: a set holds too few pictures for `neighbours`, a row is not finite (in float32), or the
            widths differ.

    Source: Kynkaanniemi et al., arXiv:1904.06991v3, Sec. 2, Eq. 1-2; equal to torch_fidelity's
    prc_features_to_metric.
    """
    generated, real = generated.float(), real.float()
    check_features(generated, "precision and recall, generated pictures")
    check_features(real, "precision and recall, real pictures")
    check_widths(generated, real)
    if neighbours < 1:
        raise ValueError(f"neighbours {neighbours} must be at least 1")
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"precision and recall need more than {neighbours} pictures, got {len(generated)} and {len(real)}"
        )
    tile = tile or max(1, _TILE_BYTES // (4 * max(len(generated), len(real))))
    return PrecisionRecall(
        precision=_share_inside(generated, real, _radii(real, neighbours, tile), tile),
        recall=_share_inside(real, generated, _radii(generated, neighbours, tile), tile),
    )


def _radii(features: Tensor, neighbours: int, tile: int) -> Tensor:
    """Distance of each picture to its k-th nearest other one, N.

    Raises:
        ValueError: a distance overflows.
    """
    radii = torch.cat(
        [
            torch.cdist(rows, features).topk(neighbours + 1, largest=False).values[:, -1]
            for rows in features.split(tile)
        ]
    )
    if not bool(radii.isfinite().all()):
        largest = float(features.abs().max())
        raise ValueError(
            f"precision and recall: distances of features as large as {largest:.3g} overflow float32"
        )
    return radii


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor, tile: int) -> float:
    inside = [(torch.cdist(rows, centres) <= radii).any(dim=1) for rows in points.split(tile)]
    return float(torch.cat(inside).double().mean())
