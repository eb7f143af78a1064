"""Stage: train OpenVision 3, or the CLIP baseline on the same samples in the same order.

`python -m encoder.train <config.yaml> <out_dir>` writes out_dir/weights (vision towers, fp16 safetensors,
card.yaml); a recipe of several phases writes out_dir/<phase>/weights. With `--plan` instead of a folder it
prints what that would cost. A run that is killed goes on from its last checkpoint and ends with the same
weights. No torch here until the training starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from encoder.runtime.config import dump, read_yaml
from encoder.runtime.stage import DONE, main, make_writable, write_json
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
    for name, config in recipe.configs(out_dir).items():
        folder = out_dir / name
        if (folder / DONE).is_file():
            continue
        make_writable(folder)
        dump(config, folder / "config.yaml")
        scores[name] = train(config, folder)
        write_json(folder / DONE, {"stage": "encoder.train", "result": scores[name]})
    return scores


def run(argv: list[str]) -> None:
    """The command line."""
    path = next((word for word in argv if word.endswith((".yaml", ".yml"))), None)
    is_recipe = path is not None and Path(path).is_file() and "phases" in read_yaml(path)
    if "--plan" in argv:
        print_plan([word for word in argv if word != "--plan"])
    elif is_recipe:
        main(RecipeConfig, train_phases, argv)
    else:
        main(TrainConfig, train, argv)


if __name__ == "__main__":
    run(sys.argv[1:])
