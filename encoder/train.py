"""Stage: train OpenVision 3, or the CLIP baseline on the same samples in the same order.

`python -m encoder.train <config.yaml> <out_dir>` writes out_dir/weights (towers, fp16 safetensors,
card.yaml); a recipe of several phases writes out_dir/<phase>/weights. With `--plan` instead of a folder it
prints what that would cost. A run that is killed goes on from its last checkpoint and ends with the same
weights. No torch here until the training starts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from encoder.runtime.config import dump, read_yaml
from encoder.runtime.resume import DONE, STAGE_CONFIG
from encoder.runtime.stage import is_first_process, main, make_writable, write_done
from encoder.training.options import TrainConfig
from encoder.training.plan import main as print_plan
from encoder.training.recipe import RecipeConfig


def train(config: TrainConfig, out_dir: Path) -> dict:
    """Train one phase; returns its held-out scores."""
    from encoder.data.feed import killed_readers_named
    from encoder.training import trainer

    with killed_readers_named():
        return trainer.train(config, out_dir)


def train_phases(recipe: RecipeConfig, out_dir: Path) -> dict[str, dict]:
    """Train the phases that are not done yet, in order; returns the scores of each trained now."""
    scores = {}
    left = {folder: config for folder, config in recipe.runs(out_dir).items() if not _is_done(folder)}
    for folder, config in left.items():
        make_writable(folder)
        if is_first_process():
            dump(config, folder / STAGE_CONFIG)
        started = time.monotonic()
        scores[folder.name] = train(config, folder)
        write_done(folder, "encoder.train", scores[folder.name], time.monotonic() - started)
    return scores


def _is_done(folder: Path) -> bool:
    return (folder / DONE).is_file()


def run(argv: list[str]) -> None:
    """The command line."""
    path = next((word for word in argv if word.endswith((".yaml", ".yml"))), None)
    is_recipe = path is not None and Path(path).is_file() and "phases" in read_yaml(path)
    if "--plan" in argv:
        print_plan([word for word in argv if word != "--plan"])
    elif is_recipe:
        main(RecipeConfig, train_phases, argv, parts=RecipeConfig.runs)
    else:
        main(TrainConfig, train, argv)


if __name__ == "__main__":
    run(sys.argv[1:])
