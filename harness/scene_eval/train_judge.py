"""Stage: train the judge of SceneEval on renders of scenes, whole and damaged, and try it on others.

`python -m harness.scene_eval.train_judge <config.yaml> <out_dir>` writes out_dir/judge. It sees no picture of
an encoder, a decoder or a generator, and scenes with every pair of kind and colour. It ends with the judge's
own score: the tasks' prompts on renders of the scenes that they were made of, of the test split.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.render import render
from encoder.data.scenes.scene import Scene
from encoder.runtime import checkpoint
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from encoder.training.optim import autocast
from harness.scene_eval.config import JUDGE, JudgeConfig
from harness.scene_eval.damage import damage
from harness.scene_eval.facts import all_hold
from harness.scene_eval.judge import STRIDE, Judge, Targets, judge_loss, name_of, targets_of
from harness.scene_eval.tasks import ScenePrompt, make_prompts

_WARMUP, _CLIP_NORM, _CHUNK, _LOG_STEPS = 0.05, 5.0, 250, 20


def _drawn(seed: int, split: str, indices: Sequence[int], size: int) -> np.ndarray:
    return np.stack([render(make_scene(seed, index, split), size) for index in indices])


def draw_all(config: JudgeConfig) -> np.ndarray:
    """The renders to learn from: N S S 3 uint8."""
    chunks = [range(i, min(i + _CHUNK, config.num_pictures)) for i in range(0, config.num_pictures, _CHUNK)]
    about = [(config.seed, "train", chunk, config.image_size) for chunk in chunks]
    if config.num_workers == 1:
        return np.concatenate([_drawn(*each) for each in about])
    with ProcessPoolExecutor(config.num_workers, mp_context=get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(_drawn, *zip(*about, strict=True))))


def compose_all(config: JudgeConfig) -> list[Scene]:
    """Their scenes."""
    return [make_scene(config.seed, index, "train") for index in range(config.num_pictures)]


def tasks_read_right(
    judge: Judge, prompts: Sequence[ScenePrompt], images: np.ndarray, device: str = "cpu"
) -> dict[str, float]:
    """Of each task, the share of prompts (%) whose own render (M S S 3 uint8) the judge finds right."""
    right: dict[str, list[bool]] = {}
    for prompt, seen in zip(prompts, judge.read(images, device=device), strict=True):
        right.setdefault(prompt.task, []).append(all_hold(prompt.facts, seen))
    return {task: 100 * float(np.mean(each)) for task, each in right.items()}


def rate(config: JudgeConfig, step: int) -> float:
    """The learning rate of a step."""
    warmup = max(1, round(_WARMUP * config.num_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.num_steps - warmup)))


def run(config: JudgeConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring.

    Raises: ValueError: it reads fewer of its renders right than `least_percent`.
    """
    torch.set_flush_denormal(True)
    device = str(require_device(config.device))
    progress(out_dir, 0, config.num_steps)  # marks the folder as begun with this config
    judge, loss = learn(config, out_dir, device)
    judge.eval()
    result = tried(judge, config, device)
    mean = float(np.mean(list(result["renders"].values())))
    if mean < config.least_percent:
        by_task = ", ".join(f"{task} {value:.0f}" for task, value in result["renders"].items())
        raise ValueError(
            f"the judge reads {mean:.1f} % of its renders right, wanted {config.least_percent} %: give it "
            f"more num_steps, with which it goes on, or num_pictures ({by_task})"
        )
    judge.cpu().save(out_dir / JUDGE)
    return result | {"mean": mean, "judge": name_of(out_dir / JUDGE), "loss": loss}


def learn(config: JudgeConfig, out_dir: Path, device: str) -> tuple[Judge, float]:
    """A judge after all steps, those before the last checkpoint taken from it, and the last batch's loss."""
    torch.manual_seed(config.seed)
    judge = Judge(config).to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=config.lr, weight_decay=1e-2)
    path, first_step, last = out_dir / "checkpoint.pt", 0, math.nan
    if newest := checkpoint.newest(path):
        state = checkpoint.load(newest)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, last = state["step"], state["loss"]
    if first_step >= config.num_steps:
        return judge, last
    images, scenes = draw_all(config), compose_all(config)
    for step in range(first_step, config.num_steps):
        rows = checkpoint.batch_indices(config.seed, step, config.batch_size, len(scenes)).tolist()
        draw = checkpoint.step_generator(config.seed, step, "damage")
        pixels = damage(images[rows], draw, config.blur, config.noise, config.jpeg)
        targets = targets_of([scenes[row] for row in rows], config.image_size // STRIDE)
        with autocast(config.precision, device.partition(":")[0]):
            responses = judge(pixels.to(device, memory_format=torch.channels_last))
        loss = judge_loss(responses, _on(targets, device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), _CLIP_NORM)
        for group in optimiser.param_groups:
            group["lr"] = rate(config, step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        done, last = step + 1, loss.item()
        if done % _LOG_STEPS == 0 or done == config.num_steps:
            progress(out_dir, done, config.num_steps, loss=last)
        if done % config.checkpoint_steps == 0 or done == config.num_steps:
            state = {"step": done, "loss": last, "judge": judge.state_dict()}
            checkpoint.save(path, state | {"optimiser": optimiser.state_dict()})
    return judge, last


def _on(targets: Targets, device: str) -> Targets:
    looks = {name: each.to(device) for name, each in targets.looks.items()}
    moved = (each.to(device) for each in (targets.heat, targets.where, targets.offset))
    return Targets(*moved, looks, targets.place.to(device))


def tried(judge: Judge, config: JudgeConfig, device: str) -> dict[str, dict[str, float]]:
    """Of each task, how many prompts' own renders are found right, in %: whole ones, and damaged ones."""
    prompts = make_prompts(config.seed, "test", config.num_tested)
    renders = _drawn(config.seed, "test", [each.scene for each in prompts], config.image_size)
    draw = checkpoint.step_generator(config.seed, 0, "tried")
    pixels = damage(renders, draw, config.blur, config.noise, config.jpeg)
    spoilt = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    sets = {"renders": renders, "damaged": spoilt}
    return {name: tasks_read_right(judge, prompts, each, device) for name, each in sets.items()}


if __name__ == "__main__":
    main(JudgeConfig, run)
