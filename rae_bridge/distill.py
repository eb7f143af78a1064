"""Stage: distil a trained DiT-DH into a student of a few steps.

`python -m rae_bridge.distill <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.distill ...`) writes out_dir/weights as `rae_bridge.train` does: the averaged student, the
teacher's latent_stats.pt and tokens.json, and flow.json, which also says whose student it is, its grids, and
the guidance that it was taught. `rae_bridge.generate`, `draw` and `sweep` take it as a model. With `--plan`
instead of a folder it prints what it would take.

Methods: `tmd` (Transition Matching Distillation, arXiv:2601.09881, stages 1 and 2), and in the same code its
baselines `meanflow` (arXiv:2511.13019, stage 1) and `dmd2` (arXiv:2405.14867, stage 2) of the whole network.
"""

import copy
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from encoder.models.pretrained import WEIGHTS_FILE
from encoder.runtime import checkpoint
from encoder.runtime.ahead import made_ahead
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device, set_tf32, settled_precision
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, sha256_file
from encoder.runtime.trackers import Journal
from encoder.training.finite import FiniteSteps
from encoder.training.optim import average_weights, rate_factor
from rae_bridge.distillation.config import DistillConfig
from rae_bridge.distillation.learner import StopRule
from rae_bridge.distillation.plan import main as print_plan
from rae_bridge.distillation.stages import STAGES
from rae_bridge.distillation.states import Grids
from rae_bridge.distillation.teacher import Teacher
from rae_bridge.dit import DiTDH, build_dit
from rae_bridge.generate import TrainedFlow
from rae_bridge.held_out import Tokens, check_classes
from rae_bridge.shapes import TransitionShape
from rae_bridge.train import load_rows, open_tokens
from rae_bridge.transition import MeanFlowDiT, TransitionDiT, load_model, start_from
from rae_bridge.weights_folder import WEIGHTS, WeightsFolder, check_tokens_alike, write_weights


def load_teacher(config: DistillConfig) -> TrainedFlow:
    """The teacher, frozen, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no DiT-DH, is a student itself, or has no null class where one is needed.
    """
    flow = TrainedFlow.load(config.teacher)
    if flow.student is not None:
        raise ValueError(f"teacher {config.teacher} is a student itself: name a model by rae_bridge.train")
    if not isinstance(flow.model, DiTDH):
        raise ValueError(
            f"teacher {config.teacher} is a LightningDiT, one stack of blocks: distillation needs a DiT-DH, "
            "whose head can be run alone (size with two entries each)"
        )
    if not flow.model.config.has_null_class and (config.guidance > 1 or config.class_dropout_prob):
        raise ValueError(
            f"teacher {config.teacher} has no null class: set class_dropout_prob=0 and guidance=1"
        )
    return flow


def build_student(config: DistillConfig, teacher: DiTDH, teacher_hash: str) -> DiTDH:
    """The student before this stage: the teacher itself, or what stage 1 of tmd made of it.

    Raises:
        FileNotFoundError: there is no such stage 1.
        ValueError: it is no student of tmd, or another teacher's.
    """
    if config.student is not None:
        about = WeightsFolder.read(config.student)
        if about.name != TransitionDiT.name or about.student is None:
            raise ValueError(f"student {config.student} is not by stage 1 of method tmd")
        if about.student["teacher"] != teacher_hash:
            raise ValueError(
                f"student {config.student} was distilled from {about.student['teacher_folder']} "
                f"({about.student['teacher'][:12]}), not from {config.teacher} ({teacher_hash[:12]})"
            )
        return load_model(about.path).train()
    torch.manual_seed(config.seed)
    shape = teacher.config
    if config.method == "tmd":
        student = TransitionDiT(TransitionShape(**dataclasses.asdict(shape), **config.of_head))
    else:
        student = (MeanFlowDiT if config.method == "meanflow" else build_dit)(shape)
    start_from(student, teacher.state_dict())
    return student.train()


def check_tokens(config: DistillConfig, cache: Tokens) -> None:
    """Raises: ValueError if the tokens are not those that the teacher knows, or have classes it has not."""
    teacher = WeightsFolder.read(config.teacher)
    check_tokens_alike("the training", cache.origin, f"the teacher {config.teacher}", teacher.tokens)
    check_classes(teacher.shape.num_classes, cache)


def about_student(config: DistillConfig, grids: Grids, teacher_hash: str) -> dict:
    """What flow.json says of the student."""
    student = {"method": config.method, "stage": config.stage, "guidance": config.guidance}
    student |= {"teacher": teacher_hash, "teacher_folder": config.teacher}
    student |= {"steps": config.steps, "times": grids.times}
    return student | {"inner_steps": config.inner_steps, "inner_shift": grids.inner_shift}


def distill(config: DistillConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)  # denormal numbers slow a CPU many times over

    # ---- teacher, student
    require_device(config.device)
    flow = load_teacher(config)
    teacher_hash = sha256_file(ROOT / config.teacher / WEIGHTS_FILE)
    student = build_student(config, flow.model, teacher_hash)

    # ---- data
    ranks = Ranks.start(config.device)
    journal = Journal(out_dir, config.trackers, config, is_main=ranks.is_main)
    set_tf32(ranks.device, config.tf32)
    part = ranks.part(config.batch_size)
    cache = open_tokens(config, ranks.device)
    check_tokens(config, cache)
    normalise = flow.statistics.to(ranks.device).normalise

    # ---- networks, optimisers
    teacher = Teacher(flow.model.to(ranks.device), config.guidance, config.precision)
    student = student.to(ranks.device)
    averaged = copy.deepcopy(student).requires_grad_(False).eval()
    grids = Grids.of(config, flow.shift)
    stage = STAGES[config.stage](config, teacher, student, grids, ranks)
    rule, finite = StopRule(config.stop_factor), FiniteSteps(config.skip_non_finite)

    # ---- resume
    path, first_step, seconds = out_dir / "checkpoint.pt", 0, 0.0
    if (newest := checkpoint.newest(path)) is not None:
        state = checkpoint.load(newest)
        stage.load_state_dict(state["stage"])
        averaged.load_state_dict(state["averaged"])
        rule.norms, rule.largest, finite.skipped = state["norms"], state["largest_norm"], state["skipped"]
        first_step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds

    # ---- loop
    indices = range(first_step * stage.num_batches, config.num_steps * stage.num_batches)
    rows = made_ahead(functools.partial(load_rows, cache, config, part), indices)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for latents, y in rows:
            yield (
                normalise(latents.to(ranks.device, non_blocking=True)),
                y.to(ranks.device, non_blocking=True),
            )

    batch = batches()
    for step in range(first_step, config.num_steps):
        norm, losses = stage.step(step, batch, finite)
        rule.see(step, norm)
        average_weights(averaged.parameters(), student.parameters(), config.average_decay, step)
        done = step + 1
        is_last = done == config.num_steps
        if done % config.log_steps == 0 or is_last:
            scalars = {name: ranks.mean(loss).item() for name, loss in losses.items()}
            scalars |= {
                "grad_norm": norm,
                "lr": config.optim.lr * rate_factor(config.optim, step, config.num_steps),
            }
            rate = (done - first_step) * config.batch_size / (time.monotonic() - started - seconds)
            journal.write(done, config.num_steps, **scalars, samples_per_second=rate)
        if (done % config.checkpoint_steps == 0 or is_last) and ranks.is_main:
            state = {"step": done, "seconds": time.monotonic() - started, "skipped": finite.skipped}
            state |= {"norms": rule.norms, "largest_norm": rule.largest}
            state |= {"stage": stage.state_dict(), "averaged": averaged.state_dict()}
            checkpoint.save(path, state, keep=config.keep_checkpoints)

    # ---- save
    seconds = time.monotonic() - started
    if ranks.is_main:
        about = {"shift": grids.shift, "student": about_student(config, grids, teacher_hash)}
        write_weights(out_dir / WEIGHTS, averaged, flow.statistics, tokens=cache.origin, **about)
    ranks.wait()
    journal.close()
    return {
        "num_samples": config.num_steps * config.batch_size * stage.num_batches,
        "num_parameters": sum(each.numel() for each in student.parameters() if each.requires_grad),
        "largest_grad_norm": rule.largest,
        "precision": settled_precision(config.precision, ranks.device),
        "training_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    if "--plan" in sys.argv:
        print_plan([word for word in sys.argv[1:] if word != "--plan"])
    else:
        main(DistillConfig, distill)
