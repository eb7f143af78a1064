"""Stage: the real pictures that a generation suite compares with, what the judge sees in them, and the floor.

`python -m harness.metrics.reference <config.yaml> <out_dir>` takes two disjoint sets from one split of a
folder of shards. It writes the first as `pictures.npz` (arr_0: N H W 3 uint8; labels: N; names of the
classes) with `features.npz`, and scores the second against the first as if it had been generated: `real vs
real`, the best that any generator can hope for with this many samples.

With published statistics (ADM's VIRTUAL_imagenet256_labeled.npz: mu and sigma of the train set, arr_0 of
10,000 pictures for precision and recall) one set is enough: it is scored against those.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from encoder.data.picture_set import load_pictures
from encoder.runtime.config import ROOT, ConfigError, load, resolve
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress, sha256_file, write_json
from harness.metrics import fid
from harness.metrics.config import (
    FEATURES,
    JUDGE,
    MANIFOLD,
    PICTURES,
    Judge,
    ReferenceConfig,
    arrays_in,
    judge_of,
)
from harness.metrics.features import EncoderJudge, Features, extract, load_extractor
from harness.metrics.numbers import Against, generation_metrics
from harness.metrics.picture_sets import read_pictures


def run(config: ReferenceConfig, out_dir: Path) -> dict:
    """Write the files; the result holds the floor's numbers.

    Raises:
        ConfigError: the split holds too few pictures.
        FileNotFoundError, ValueError: weights or statistics are missing, damaged or unsafe.
    """
    device = str(require_device(config.device))
    network = load_extractor(config, device)
    judge = judge_of(config)
    if isinstance(network, EncoderJudge):
        judge = dataclasses.replace(judge, sha256=network.encoder.fingerprint)
    num, num_sets = config.num_samples, 1 if config.statistics else 2
    pictures, records = load_pictures(
        config.data, config.split, limit=num_sets * num, image_size=config.image_size
    )
    if len(pictures) < num_sets * num:
        sets = f"two sets of {num} pictures need {2 * num}" if num_sets == 2 else f"{num} pictures are asked"
        raise ConfigError(
            f"{sets}, {config.data}/{config.split} holds {len(pictures)}; write more of them or lower "
            "reference.num_samples"
        )

    def see(part: np.ndarray, first: int) -> Features:
        return extract(
            network,
            part,
            batch_size=config.batch_size,
            device=device,
            report=lambda done: progress(out_dir, first + done, num_sets * num, "pictures"),
        )

    if config.statistics:
        if "arr_0" in arrays_in(ROOT / config.statistics):
            shown = read_pictures(ROOT / config.statistics)
            extract(network, shown, batch_size=config.batch_size, device=device).save(out_dir / MANIFOLD)
        against = published(out_dir, config.statistics)
    seen = see(pictures[:num], 0)
    labels = [record.get("label", -1) for record in records]
    names = {record.get("label", -1): record.get("class_name", "") for record in records}
    named = {"class_labels": sorted(names), "class_names": [names[label] for label in sorted(names)]}
    np.savez(out_dir / PICTURES, arr_0=pictures[:num], labels=labels[:num], **named)
    seen.save(out_dir / FEATURES)
    write_json(out_dir / JUDGE, {"config": resolve(config), "judge": dataclasses.asdict(judge)})
    floor, classes = seen, torch.tensor(labels)
    if not config.statistics:
        floor, against = see(pictures[num:], num), Against.of(seen, classes[:num])
    subset = config.kernel_subset_size
    metrics = generation_metrics(floor, against, subset, judge, classes[-num:])
    return {"metrics": {config.prefix + key: metric for key, metric in metrics.items()}}


def published(folder: Path, statistics: str) -> Against:
    """Published statistics, with the features of their pictures where the reference stage has left some.

    Raises:
        ValueError: the file is damaged or holds no statistics.
    """
    path = ROOT / statistics
    has_maps = {"mu_s", "sigma_s"} <= arrays_in(path)
    manifold = folder / MANIFOLD
    return Against(
        moments=fid.Statistics.load(path),
        spatial=fid.Statistics.load(path, "mu_s", "sigma_s") if has_maps else None,
        pooled=Features.load(manifold).pooled if manifold.is_file() else None,
        name=f"{path.name} sha256:{sha256_file(path)}",
    )


def read_reference(folder: Path) -> tuple[ReferenceConfig, Judge]:
    """How a reference folder was made, and who judged.

    Raises:
        FileNotFoundError, ValueError: it is no reference folder, or is damaged.
    """
    try:
        held = json.loads((folder / JUDGE).read_text())
        return load(ReferenceConfig, held["config"], name=JUDGE), Judge(**held["judge"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} is no folder of harness.metrics.reference: no {JUDGE}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / JUDGE} is damaged: {error}") from None


if __name__ == "__main__":
    main(ReferenceConfig, run)
