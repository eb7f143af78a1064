"""Stage: what the judge says of pictures of SceneEval's test prompts.

`python -m harness.scene_eval.score <config.yaml> <out_dir>`; the result is {"metrics": {key: ...}}, and
out_dir/judged.jsonl says of each picture what was read in it and whether it is right.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import DONE, main, progress
from harness.metrics.picture_sets import read_labels, read_pictures
from harness.scene_eval.config import JUDGE, SCORE, SceneScoreConfig
from harness.scene_eval.facts import Seen, all_hold
from harness.scene_eval.judge import Judge, name_of
from harness.scene_eval.prompts import read_prompts
from harness.scene_eval.scores import judge_all, metrics_of

JUDGED = "judged.jsonl"


def ceiling_of(folder: str | None) -> float | None:
    """The score (%) that a finished stage of this kind gave.

    Raises: FileNotFoundError: it has not finished.
    """
    if folder is None:
        return None
    path = ROOT / folder / DONE
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: ceiling is a finished folder of harness.scene_eval.score")
    return json.loads(path.read_text())["result"]["metrics"][SCORE]["value"]


def run(config: SceneScoreConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring.

    Raises:
        ValueError: the pictures name no prompts, or others.
    """
    device = str(require_device(config.device))
    prompts, ceiling = read_prompts(ROOT / config.prompts), ceiling_of(config.ceiling)
    judge = Judge.load(ROOT / config.judge / JUDGE, device)
    pictures, labels = read_pictures(ROOT / config.pictures), read_labels(ROOT / config.pictures)
    if labels is None or not 0 <= labels.min() <= labels.max() < len(prompts):
        raise ValueError(f"{config.pictures} must name the prompts of its pictures, 0 to {len(prompts) - 1}")
    seen: list[Seen] = []
    for one in judge.read(pictures, config.batch_size, device):
        seen.append(one)
        progress(out_dir, len(seen), len(pictures), "pictures")
    with (out_dir / JUDGED).open("w") as file:
        for label, one in zip(labels.tolist(), seen, strict=True):
            prompt = prompts[label]
            right = all_hold(prompt.facts, one)
            line = {"prompt": prompt.prompt, "task": prompt.task, "right": right}
            file.write(json.dumps(line | dataclasses.asdict(one)) + "\n")
    judged = judge_all(prompts, seen, np.array(labels).tolist())
    about = {"judge": name_of(ROOT / config.judge / JUDGE), "ceiling": ceiling}
    metrics = metrics_of(judged, num_resamples=config.num_resamples, seed=config.seed, **about)
    return {"metrics": {key: dataclasses.asdict(metric) for key, metric in metrics.items()}}


if __name__ == "__main__":
    main(SceneScoreConfig, run)
