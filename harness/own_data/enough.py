"""Stage: are there pictures enough for what is to be measured on them? It stops a run before any training.

`python -m harness.own_data.enough <config.yaml> <out_dir>` counts what `harness.own_data` packed. What the
names of the files alone can say, `check_listing` says before anything runs.
"""

import dataclasses
import json
import math
from pathlib import Path

from encoder.runtime.config import ROOT, ConfigError
from encoder.runtime.stage import main
from harness.own_data.listing import Listing
from harness.own_data.pack import CARD

_SPREAD = 3.0  # standard deviations that the number of pictures drawn into the test split may fall short


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnoughConfig:
    """What the generation suite asks of the test split, and what would be too little of it."""

    data: str  # folder of harness.own_data
    num_samples: int  # of each real set, and of the generated one
    num_sets: int = 2  # of real pictures
    least: int = 1  # samples with which every number of the suite is defined


def run(config: EnoughConfig, out_dir: Path) -> dict:
    """Count; see the module's docstring.

    Raises:
        ConfigError: the test split is too small, with the numbers that would fit.
    """
    counts = json.loads((ROOT / config.data / CARD).read_text())["counts"]
    num_test = sum(counts["test"].values())
    if num_test < config.num_sets * config.num_samples:
        raise ConfigError(_too_few(config, num_test, f"the test split holds {num_test}"))
    return {"num_test": num_test, "num_needed": config.num_sets * config.num_samples}


def check_listing(listing: Listing, config: EnoughConfig, test_fraction: float) -> None:
    """Of a folder of pictures, before they are read.

    Raises:
        ConfigError: however the pictures are split, there are too few, with the numbers that would fit.
    """
    if listing.has_shards:
        return
    needed, num_pictures = config.num_sets * config.num_samples, listing.num_pictures
    if "test" in listing.files:
        num_test = len(listing.files["test"])
        if num_test < needed:
            raise ConfigError(_too_few(config, num_test, f"the test folder holds {num_test}"))
    elif num_pictures - len(listing.class_names) < needed:  # each class needs one to train on
        expected = test_fraction * num_pictures
        surely = max(0, math.floor(expected - _SPREAD * math.sqrt(expected * (1 - test_fraction))))
        held = f"the folder holds {num_pictures}, of which about {expected:.0f} become test pictures"
        raise ConfigError(_too_few(config, surely, f"{held} (own_data.test_fraction {test_fraction:g})"))


def _too_few(config: EnoughConfig, num_test: int, held: str) -> str:
    """One line: what is needed, what is there, what would fit."""
    sets = "two sets" if config.num_sets == 2 else "one set"
    asked = f"own pictures: {sets} of reference.num_samples={config.num_samples} need "
    asked += f"{config.num_sets * config.num_samples} test pictures, {held}"
    fits = num_test // config.num_sets
    if fits < config.least:
        least = f"at least {config.num_sets * config.least} test pictures are needed to measure anything"
        return f"{asked}; {least}: add pictures or raise own_data.test_fraction"
    subset = max(2, fits // 2)
    return (
        f"{asked}; these numbers fit: reference.num_samples={fits} reference.kernel_subset_size={subset} "
        f"score.kernel_subset_size={subset}"
    )


if __name__ == "__main__":
    main(EnoughConfig, run)
