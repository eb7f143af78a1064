"""Stage: SceneEval's prompts with their truths, and the pictures that would be right.

`python -m harness.scene_eval.prompts <config.yaml> <out_dir>` writes out_dir/test.jsonl and validation.jsonl
(a prompt a line, with its task, facts, chance and scene), renders.npz (the test prompts' own scenes, drawn:
the judge's ceiling), and captions.jsonl (of the first test pictures, short and dense in turns). Its result
is {"metrics": ...}: what the test prompts are worth by chance.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoder.data.options import ScenesConfig
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.render import render
from encoder.runtime.config import ROOT, load
from encoder.runtime.stage import main, progress
from harness.scene_eval.config import CAPTIONS, RENDERS, TEST, VALIDATION, PromptsConfig
from harness.scene_eval.facts import all_hold
from harness.scene_eval.scores import chance_metrics
from harness.scene_eval.tasks import ScenePrompt, make_prompts, random_truths
from rae_bridge.text.encode import read_captions

_RANDOM_FIRST = 1_000_000  # after the prompts' scenes


def read_world(folder: Path) -> ScenesConfig:
    """How a folder of Scenes was made.

    Raises:
        FileNotFoundError: it is none.
        ValueError: its scenes are of single objects, or drawn in a way of their own.
    """
    path = folder / "card.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no folder of Scenes (no card.json): SceneEval needs their truth"
        )
    config = load(ScenesConfig, json.loads(path.read_text())["config"], name=str(path))
    if config.composition != "scene_centric" or config.object_scale != 1 or config.rendered_at:
        raise ValueError(
            f"{folder}: SceneEval needs composition=scene_centric at object_scale=1, as rendered"
        )
    return config


def read_prompts(folder: Path, name: str = TEST) -> list[ScenePrompt]:
    """The prompts that this stage wrote.

    Raises: FileNotFoundError: there are none.
    """
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"no prompts of SceneEval in {folder} ({name}); run harness.scene_eval.prompts"
        )
    return [ScenePrompt(**json.loads(line)) for line in (folder / name).read_text().splitlines()]


def draw(world: ScenesConfig, prompts: Sequence[ScenePrompt], split: str) -> np.ndarray:
    """The prompts' own scenes: M S S 3 uint8."""
    scenes = (make_scene(world.seed, prompt.scene, split) for prompt in prompts)
    return np.stack([render(scene, world.image_size) for scene in scenes])


def run(config: PromptsConfig, out_dir: Path) -> dict:
    """Write the files; see the module's docstring."""
    folder = ROOT / config.data
    world, seed = read_world(folder), config.seed
    progress(out_dir, 0, 4, "files")
    first = config.first_scene + 10_000_000 * seed  # another seed asks other questions of the same world
    about = {"first": first, "held_out": world.held_out}
    for name, split, num in (
        (TEST, "test", config.num_prompts),
        (VALIDATION, "val", config.num_validation),
    ):
        prompts = make_prompts(world.seed, split, num, **about)
        truths = list(random_truths(world.seed, split, config.num_random, first + _RANDOM_FIRST))
        prompts = [
            dataclasses.replace(each, chance=float(np.mean([all_hold(each.facts, one) for one in truths])))
            for each in prompts
        ]
        _write_lines(out_dir / name, [each.record() for each in prompts])
        if name == TEST:
            np.savez(out_dir / RENDERS, arr_0=draw(world, prompts, split), labels=np.arange(len(prompts)))
    captions = []
    if config.num_captions:
        held = read_captions(folder, "test", config.num_captions)
        captions = [{"prompt": texts.dense if i % 2 else texts.alt, "key": key}
                    for i, (key, texts) in enumerate(held)]  # fmt: skip
    _write_lines(out_dir / CAPTIONS, captions)
    prompts = read_prompts(out_dir)
    chance = chance_metrics(prompts, config.num_random)
    return {
        "num_prompts": len(prompts),
        "num_captions": len(captions),
        "metrics": {key: dataclasses.asdict(metric) for key, metric in chance.items()},
    }


def _write_lines(path: Path, records: Sequence[dict]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


if __name__ == "__main__":
    main(PromptsConfig, run)
