"""The Gaussian that pictures are compared with, from a file or from moments, and the distance to it.
Letter: D feature width.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from encoder.metrics.checks import check_gaussian
from encoder.metrics.frechet import Moments, frechet_distance, moments_of


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features."""

    mean: np.ndarray  # D, float64
    cov: np.ndarray  # D D, float64

    @classmethod
    def of(cls, moments: Moments) -> "Statistics":
        """Those of features seen."""
        return cls(moments.mean().numpy(), moments.covariance().numpy())

    @classmethod
    def load(cls, path: Path, mean: str = "mu", cov: str = "sigma") -> "Statistics":
        """From an npz file of features (`pooled`, N D), as harness.metrics.reference writes, or of a mean and
        covariance, as papers publish them (ADM's `mu` and `sigma`; `mu_s` and `sigma_s` for sFID). Nothing is
        unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, holds neither, or what it holds is not finite, symmetric, ...
        """
        if not path.is_file():
            raise FileNotFoundError(f"reference not found: {path}; harness.metrics.reference writes one")
        arrays = _read(path, mean, cov)
        if "pooled" in arrays:
            try:
                return cls.of(moments_of(torch.from_numpy(arrays["pooled"])))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
        check_gaussian(arrays[mean], arrays[cov], f"{path}: {mean} and {cov}")
        return cls(arrays[mean], arrays[cov])


def _read(path: Path, mean: str, cov: str) -> dict[str, np.ndarray]:
    """`pooled`, or the two arrays named, in float64."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = set(archive)
            names = [name for name in ("pooled",) if name in found and mean == "mu"] or [mean, cov]
            arrays = {name: archive[name] for name in names if name in found}
    except Exception as error:  # zip, zlib and numpy each raise their own kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"statistics damaged or unsafe: {path} ({reason})") from None
    if len(arrays) != len(names):
        raise ValueError(f"{path}: expected `pooled`, or `{mean}` and `{cov}`; got {sorted(found)}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} holds {array.dtype}, expected real numbers")
    # As this machine orders bytes: torch takes no other
    kinds = {
        name: array.dtype.newbyteorder("=") if name == "pooled" else np.float64
        for name, array in arrays.items()
    }
    return {name: array.astype(kinds[name], copy=False) for name, array in arrays.items()}


def distance(moments: Moments, reference: Moments | Statistics) -> float:
    """Squared Frechet distance of a set of features to another set, or to published statistics.

    Raises:
        ValueError: they are of features of another width, of fewer than two pictures, or not finite.
    """
    width = len(moments.total)
    if isinstance(reference, Moments):
        reference = Statistics.of(reference)
    if len(reference.mean) != width:
        raise ValueError(f"statistics of {len(reference.mean)} features, the extractor gives {width}")
    seen = Statistics.of(moments)
    return frechet_distance(seen.mean, seen.cov, reference.mean, reference.cov, overwrite_first=True)
