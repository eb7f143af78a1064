"""What the metric stages are told, what their numbers may be called, their shape. No torch here."""

import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Literal

from encoder.metrics import weights
from encoder.metrics.networks import INCEPTION, LITE0, check_weights
from encoder.runtime.config import ROOT, ConfigError
from encoder.runtime.device import Device
from encoder.runtime.stage import sha256_file
from harness.replica.mark import is_in_replica

PICTURES, FEATURES = "pictures.npz", "features.npz"  # what the reference stage writes
JUDGE = "judge.json"  # who looked at them: fields of Judge
MANIFOLD = "manifold.npz"  # features of the pictures that published statistics bring
ENCODER = "encoder:"  # before what load_encoder takes: an encoder as judge
TOKEN_DISTANCE = "gFD-tokens"  # between tokens: no judge looks at pictures
Kind = Literal["reconstruction", "generation"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """Stage `harness.metrics.reference`: where the real pictures come from, and who looks at them."""

    data: str  # folder with <split>/*.tar
    split: str = "test"
    num_samples: int = 2000  # of each of the two sets
    kernel_subset_size: int = 1000
    image_size: int | None = None  # px; None: the pictures' own
    extractor: str = LITE0  # lite0, inception, or encoder:<what load_encoder takes>
    weights: str | None = None  # inception's file; None: torch.hub's place; `download`
    statistics: str | None = None  # published npz of mu, sigma (mu_s, sigma_s, arr_0), as ADM's
    prefix: str = ""  # of each key that is scored against these pictures, where a table has two sets of them
    device: Device = "cpu"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.extractor not in (LITE0, INCEPTION) and not self.extractor.startswith(ENCODER):
            raise ValueError(
                f"extractor '{self.extractor}'; choices: {LITE0}, {INCEPTION}, {ENCODER}<encoder>"
            )
        check_weights(self.extractor, self.weights)
        if self.statistics is not None and self.extractor != INCEPTION:
            raise ValueError(f"statistics are of Inception features: set extractor={INCEPTION}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Stage `harness.metrics.score`: what to score as what; the reference says by which extractor."""

    kind: Kind
    pictures: str  # npz file with arr_0: N H W 3 uint8; reconstructions in the reference's order
    reference: str  # folder of the reference stage
    # The set's tokens (a folder of tokens, from this picture on), and the real ones that they should be like
    tokens: str | None = None
    tokens_first: int = 0
    real_tokens: str | None = None
    kernel_subset_size: int = 1000
    lpips: str | None = None  # trunk weights of LPIPS: a path or `download`; None: no LPIPS
    lpips_net: Literal["alex", "vgg", "squeeze"] = "alex"  # its authors' choice for judging
    device: Device = "cpu"
    batch_size: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """An extractor with the name that its numbers bear; `label` None: the reserved names (FID, IS, ...)."""

    extractor: str
    label: str | None
    sha256: str | None = None  # of its weights file, where it has one

    def key(self, name: str) -> str:
        """The key of a number: `gFD` is gFID with the 2015 Inception, gFD-lite0 with lite0."""
        return name.replace("FD", "FID") if self.label is None else f"{name}-{self.label}"

    def __str__(self) -> str:
        return f"{self.extractor}{f' sha256:{self.sha256}' if self.sha256 else ''}"

    @property
    def gives_logits(self) -> bool:
        return not self.extractor.startswith(ENCODER)

    @property
    def gives_maps(self) -> bool:
        return self.extractor == INCEPTION


def judge_of(config: ReferenceConfig) -> Judge:
    """Who judges, and under which name.

    Raises:
        FileNotFoundError: Inception's weights are not there.
    """
    if config.extractor != INCEPTION:
        label = re.sub(r"[^\w.\-]+", "_", config.extractor.removeprefix(ENCODER))
        return Judge(extractor=config.extractor, label=label)
    path = weights.find(weights.INCEPTION, config.weights)
    digest = sha256_file(path) if path.is_file() else None
    is_genuine = weights.is_genuine(weights.INCEPTION, path) or is_in_replica(path)  # which its rows say
    label = None if is_genuine else f"inception-{digest[:8]}"
    return Judge(extractor=INCEPTION, label=label, sha256=digest)


def lpips_judge(config: ScoreConfig) -> Judge | None:
    """LPIPS' trunk, where a set is to be scored with it; the name is kept for the published trunk.

    Raises:
        FileNotFoundError: the trunk's weights are not there.
    """
    if config.lpips is None:
        return None
    published = weights.TRUNKS[config.lpips_net]
    path = weights.find(published, config.lpips)
    digest = sha256_file(path) if path.is_file() else None
    is_genuine = weights.is_genuine(published, path) or is_in_replica(path)
    label = None if is_genuine else f"{config.lpips_net}-{digest[:8]}"
    return Judge(extractor=f"lpips {config.lpips_net}", label=label, sha256=digest)


def keys_of(
    kind: Kind, config: ReferenceConfig, lpips: Judge | None = None, *, has_tokens: bool = False
) -> tuple[str, ...]:
    """The keys that scoring a set of pictures gives, in order; has_tokens: their tokens are kept too.

    Raises:
        ConfigError, FileNotFoundError: a file that the config names cannot be what it should.
    """
    judge = judge_of(config)
    if kind == "reconstruction":
        keys = [judge.key("rFD"), "PSNR", "SSIM", *([lpips.key("LPIPS")] if lpips else [])]
        return tuple(config.prefix + key for key in keys)
    held = arrays_in(ROOT / config.statistics) if config.statistics else {"mu_s", "arr_0"}
    names = ["gFD"]
    names += ["sFD"] if judge.gives_maps and "mu_s" in held else []
    names += ["KID", "precision", "recall"] if "arr_0" in held else []
    names += [] if config.statistics else ["class-accuracy"]
    names += ["IS"] if judge.gives_logits else []
    keys = [judge.key(name) for name in names]
    keys += [f"{keys[-1]}/std"] if judge.gives_logits else []
    keys += [TOKEN_DISTANCE] if has_tokens else []
    return tuple(config.prefix + key for key in keys)


def arrays_in(path: Path) -> set[str]:
    """Names of the arrays of an npz file of statistics, without reading them.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no npz file with mu and sigma.
    """
    if not path.is_file():
        raise FileNotFoundError(f"statistics not found: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).stem for name in archive.namelist()}
    except zipfile.BadZipFile:
        names = set()
    if not {"mu", "sigma"} <= names:
        raise ConfigError(f"{path}: expected an npz file with mu and sigma, as ADM's reference files")
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A number with what is needed to read it; `value` and `stderr` are None where they are not defined."""

    value: float | None
    stderr: float | None = None  # standard error of `value` over the pictures or questions
    unit: str  # %, dB, "" for none
    higher_is_better: bool | None  # None: neither, such as the share of yes answers
    num_samples: int
    judge: str | None = None  # the network that looked at the pictures, and the hash of its weights
    against: str | None = None  # what it was compared with, where that is not the run's own pictures
