"""ADM's reference batch of ImageNet at 256 px: statistics of the train set, and pictures of it.

Source: reference sheet "Metrics, VAEs", Sec. 1.6 (arr_0: 10,000 pictures N H W 3 uint8, for precision and
recall alone; mu, sigma: 2048 pooled features; mu_s, sigma_s: 2023 spatial ones). The published file was not
opened: types here are those that ADM's evaluator would write (means in fp32, covariances in fp64).
Statistics are random, so a distance to them is a number without a meaning. 66 MB and 0.2 MB a picture.
"""

import zlib
from pathlib import Path

import numpy as np

from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.pictures import draw, scenes

FOLDER, FILE = "adm", "VIRTUAL_imagenet256_labeled.npz"
POOLED, SPATIAL, SIDE = 2048, 2023, 256
_RANK = 64


def write(root: Path, config: ReplicaConfig) -> str:
    """The file, uncompressed as published."""
    folder = root / FOLDER
    folder.mkdir()
    stream = scenes(config.seed, FILE, "train")
    pictures = np.stack([np.asarray(draw(next(stream), (SIDE, SIDE))) for _ in range(config.adm_pictures)])
    rng = np.random.default_rng(zlib.crc32(f"{config.seed}/{FILE}".encode()))
    mu, sigma = _statistics(rng, POOLED)
    mu_s, sigma_s = _statistics(rng, SPATIAL)
    np.savez(folder / FILE, arr_0=pictures, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    where = "openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/" + FILE
    (folder / README).write_text(readme("ADM's statistics of ImageNet 256", where))
    return f"{len(pictures)} pictures, statistics of {POOLED} and {SPATIAL} features"


def _statistics(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean (fp32) and a covariance (fp64) that is positive definite."""
    spread = rng.normal(size=(width, _RANK)) * 0.05
    return np.abs(rng.normal(size=width)).astype(np.float32) * 0.4, spread @ spread.T + 0.01 * np.eye(width)
