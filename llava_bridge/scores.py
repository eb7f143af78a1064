"""What an evaluation has scored so far, so that the same command asks only what is missing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from encoder.runtime.config import ROOT, resolve
from encoder.runtime.files import replacing
from encoder.runtime.stage import read_data_sets, sha256_json, write_json
from llava_bridge.config import EvaluateConfig
from llava_bridge.kept_answers import weights_state

_SCORED = "scored"  # folder: a benchmark's metrics (.json) and answers (.jsonl)


class Scores:
    """What has been scored in a stage's folder, by these very settings and weights and on these very data,
    where whoever started it noted their hashes: {name: metrics}, answers beside.

    is_writer: of several processes that score the same, one writes.
    """

    def __init__(self, config: EvaluateConfig, out_dir: Path, *, is_writer: bool = True):
        self.is_writer = is_writer
        self.settings, self.folder = sha256_json(resolve(config)), out_dir / _SCORED
        self.data, self.weights = read_data_sets(out_dir), weights_state(ROOT / config.model)
        self.metrics: dict[str, dict[str, dict]] = {}
        for path in sorted(self.folder.glob("*.json")):
            held = json.loads(path.read_text())
            about = held["settings"], held.get("data"), held.get("weights", self.weights)
            if about == (self.settings, self.data.get(path.stem), self.weights):
                self.metrics[path.stem] = held["metrics"]

    def __contains__(self, name: str) -> bool:
        return name in self.metrics

    def add(self, name: str, metrics: dict[str, dict], rows: Sequence[Mapping]) -> None:
        """Keep a benchmark's metrics and answers, the metrics last."""
        self.metrics[name] = metrics
        if not self.is_writer:
            return
        self.folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        with replacing(self.folder / f"{name}.jsonl") as temporary:
            temporary.write_text(lines)
        about = {"settings": self.settings, "data": self.data.get(name), "weights": self.weights}
        write_json(self.folder / f"{name}.json", {**about, "metrics": metrics})

    def join(self, names: Sequence[str], samples: Path) -> dict[str, dict]:
        """All metrics, and all answers in one file, in the order of `names`."""
        kept = [name for name in names if name in self]
        if self.is_writer:
            with replacing(samples) as temporary, temporary.open("w") as file:
                file.writelines((self.folder / f"{name}.jsonl").read_text() for name in kept)
        return {key: metric for name in kept for key, metric in self.metrics[name].items()}
