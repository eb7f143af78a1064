"""Stage: the real pictures that a generation suite compares with, what the judge sees in them, and the floor.

`python -m harness.metrics.reference <config.yaml> <out_dir>` takes two disjoint sets from one split of a
folder of shards. It writes the first as `pictures.npz` (arr_0: N H W 3 uint8; labels: N; names of the
classes) with `features.npz`, and scores the second against the first as if it had been generated: `real vs
real`, the best that any generator can hope for with this many samples.
"""

from pathlib import Path

import numpy as np

from encoder.config import ConfigError
from encoder.data.shards import load_images
from encoder.stage import main, progress
from harness.metrics.config import FEATURES, PICTURES, ReferenceConfig
from harness.metrics.features import Lite0, extract
from harness.metrics.numbers import generation_metrics


def run(config: ReferenceConfig, out_dir: Path) -> dict:
    """Write both files; the result holds the floor's numbers.

    Raises:
        ConfigError: the split holds too few pictures for two sets.
    """
    num = config.num_samples
    pictures, records = load_images(config.data, config.split, limit=2 * num)
    if len(pictures) < 2 * num:
        raise ConfigError(
            f"two sets of {num} pictures need {2 * num}, {config.data}/{config.split} holds "
            f"{len(pictures)}; write more of them or lower reference.num_samples"
        )
    seen = extract(Lite0(), pictures, report=lambda done: progress(out_dir, done, 2 * num, "pictures"))
    labels = [record.get("label", -1) for record in records[:num]]
    names = {record.get("label", -1): record.get("class_name", "") for record in records}
    named = {"class_labels": sorted(names), "class_names": [names[label] for label in sorted(names)]}
    np.savez(out_dir / PICTURES, arr_0=pictures[:num], labels=labels, **named)
    seen[:num].save(out_dir / FEATURES)
    return {"metrics": generation_metrics(seen[num:], seen[:num], config.kernel_subset_size)}


if __name__ == "__main__":
    main(ReferenceConfig, run)
