"""The Frechet distance, and precision and recall, against torch-fidelity's on the same features:
`python bench/metrics.py`, results/bench/metrics.json.

Each side runs in a process of its own, in turns, and is handed the features as an extractor gives them, a
batch at a time. Memory is what the process needs at most beyond its imports; time is processor time.
"""

import json
import resource
import subprocess
import sys
import time

from _table import ROOT, make_row, publish

NUM, WIDTH, BATCH = 50_000, 2048, 250  # FID's
NUM_GENERATED, NUM_REAL, WIDTH_PR = 15_000, 3_000, 64  # torch-fidelity needs N x N distances, twice


def batches(num: int, width: int):
    """Features as they come from an extractor: num / BATCH tensors of BATCH width."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for _ in range(num // BATCH):
        yield torch.randn(BATCH, width, generator=generator)


def fid_ours(statistics: dict, num: int = NUM) -> float:
    from harness.metrics import fid

    width = len(statistics["mu"])
    moments = fid.Moments.empty(width)
    for batch in batches(num, width):
        moments.update(batch)
    return fid.distance(moments, fid.Statistics(statistics["mu"], statistics["sigma"]))


def fid_baseline(statistics: dict, num: int = NUM) -> float:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    features = torch.cat(list(batches(num, len(statistics["mu"]))))
    ours = fid_features_to_statistics(features)
    ours["mu"] = ours["mu"].astype("float64")  # as its other side is
    return fid_statistics_to_metric(ours, statistics, verbose=False)["frechet_inception_distance"]


def pr_ours(_statistics: dict) -> float:
    import torch

    from harness.metrics.precision_recall import precision_recall

    generated, real = (torch.cat(list(batches(num, WIDTH_PR))) for num in (NUM_GENERATED, NUM_REAL))
    return precision_recall(generated, real + 0.5).recall


def pr_baseline(_statistics: dict) -> float:
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = (torch.cat(list(batches(num, WIDTH_PR))) for num in (NUM_GENERATED, NUM_REAL))
    return prc_features_to_metric(generated, real + 0.5, verbose=False)["recall"]


SIDES = {"fid_ours": fid_ours, "fid_baseline": fid_baseline, "pr_ours": pr_ours, "pr_baseline": pr_baseline}


def measure_here(name: str) -> None:
    """Run one side in this process; print its value, seconds and peak megabytes as JSON."""
    import torch_fidelity.metric_prc  # noqa: F401

    if name.startswith("fid"):
        SIDES[name](_statistics(256), 1000)  # what its libraries keep for themselves from first use on
    statistics = _statistics(WIDTH)
    before = _resident_mb()
    start = time.process_time()
    value = SIDES[name](statistics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps({"value": value, "seconds": time.process_time() - start, "mb": peak}))


def _statistics(width: int) -> dict:
    import numpy as np

    root = np.random.RandomState(1).randn(width, width) / width**0.5
    return {"mu": np.full(width, 0.1), "sigma": root @ root.T}


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def measure(name: str) -> dict:
    """One side in a fresh process."""
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    seen = {name: measure(name) for name in SIDES}
    for kind in ("fid", "pr"):
        ours, baseline = seen[f"{kind}_ours"]["value"], seen[f"{kind}_baseline"]["value"]
        if abs(ours - baseline) > 1e-6 * max(1.0, abs(baseline)):
            raise ValueError(f"{kind}: ours {ours} is not torch-fidelity's {baseline}")
    size = f"{NUM} features of {WIDTH} against given statistics, the value equal to 1e-6"
    pr_size = f"{NUM_GENERATED} x {NUM_REAL} features of {WIDTH_PR}, all distances kept by torch-fidelity"
    rows = [
        make_row(name, unit, seen[f"{kind}_ours"][key], seen[f"{kind}_baseline"][key], note,
                 higher_is_better=False)
        for name, unit, kind, key, note in (
            ("fid_memory", "MB", "fid", "mb", f"{size}; beyond the imports"),
            ("fid_time", "s", "fid", "seconds", f"{size}; processor time, features included"),
            ("precision_recall_memory", "MB", "pr", "mb", pr_size),
            ("precision_recall_time", "s", "pr", "seconds", pr_size),
        )
    ]  # fmt: skip
    publish("metrics", rows, setting="float64 statistics")


if __name__ == "__main__":
    measure_here(sys.argv[1]) if len(sys.argv) > 1 else main()
