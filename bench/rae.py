"""RAE's second stage, ours beside the official code: `RAE_REPO=<folder> python bench/rae.py` prints a table
and writes results/bench/rae.json.

RAE_REPO is a checkout of github.com/bytetriper/RAE. Both sides have the same weights, inputs and solver, in
fp32 on one thread of the CPU, and take turns; processor time is counted. The official samplers double the
batch with null labels whatever the guidance; its transport needs torchdiffeq, so its loop is written out here
as sample.py has it. Without RAE_REPO there is no baseline.
"""

import copy
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _table import Row, Work, make_row, peak_bytes, publish, seconds

import torch  # isort: skip
from torch import Tensor, nn

from encoder.training.optim import average_weights
from rae_bridge.config import DiTOptimConfig, TrainDiTConfig
from rae_bridge.dit import build_dit
from rae_bridge.flow import flow_loss, interpolate, velocity_target
from rae_bridge.sample import Guidance, sample, sample_transitions, time_grid
from rae_bridge.shapes import DiTConfig, DiTSize, TransitionShape
from rae_bridge.train import FlowBatch, build_optimiser, train_step
from rae_bridge.transition import TransitionDiT, start_from

SIZE = {"hidden_size": (384, 512), "depth": (6, 2), "num_heads": (6, 8)}
SHAPE = DiTConfig(**SIZE, input_size=16, in_channels=768)
BATCH, STEPS, SHIFT, SCALE, REPEATS = 4, 2, 6.9282, 1.42, 3
FEW, MANY = ((4, 1), (4, 2), (2, 2), (1, 4)), 25  # steps x calls of the head; the teacher's Euler steps
ABSENT = "RAE_REPO is not set: no official code to run beside"


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """One batch of random latents, noise, times and labels."""

    latents: Tensor
    noise: Tensor
    t: Tensor
    y: Tensor

    @staticmethod
    def draw() -> "Inputs":
        generator = torch.Generator().manual_seed(0)
        latents, noise = torch.randn(2, BATCH, 768, 16, 16, generator=generator).unbind(0)
        t = torch.rand(BATCH, generator=generator)
        return Inputs(latents, noise, t, torch.randint(1000, (BATCH,), generator=generator))


def official_model(folder: Path, ours: nn.Module) -> nn.Module:
    """RAE's DiTwDDTHead with our weights."""
    sys.path.insert(0, str(folder / "src"))
    from stage2.models.DDT import DiTwDDTHead

    size = {name: list(values) for name, values in SIZE.items()}
    model = DiTwDDTHead(input_size=16, patch_size=1, in_channels=768, **size)
    model.load_state_dict(ours.state_dict())
    return model


def our_training(model: nn.Module, inputs: Inputs) -> Work:
    """A training step: loss, gradient, clipping, AdamW, average."""
    averaged = copy.deepcopy(model).requires_grad_(False)
    config = TrainDiTConfig(
        tokens="", num_classes=1000, num_steps=1, size=DiTSize(**SIZE), optim=DiTOptimConfig()
    )
    optimiser = build_optimiser(model, config.optim)
    latents, noise, t, y = inputs.latents, inputs.noise, inputs.t, inputs.y

    def step() -> None:
        target = velocity_target(latents, noise)
        batch = FlowBatch(interpolate(latents, noise, t), t, y, target)
        train_step(model, optimiser, batch, config, 0)
        average_weights(averaged.parameters(), model.parameters(), 0.9995, 10**6)

    return step


def official_training(model: nn.Module, inputs: Inputs) -> Work:
    """The same as train.py does it, the average tensor by tensor."""
    averaged = copy.deepcopy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    latents, noise, t, y = inputs.latents, inputs.noise, inputs.t, inputs.y

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        x_t = interpolate(latents, noise, t)
        flow_loss(model(x_t, t, y), velocity_target(latents, noise)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for mean, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.mul_(0.9995).add_(parameter, alpha=1 - 0.9995)

    return step


def official_sampling(forward: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> Work:
    """Euler over a batch doubled with null labels, of which half is thrown away at the end."""

    @torch.no_grad()
    def run() -> Tensor:
        x = torch.cat([inputs.noise, inputs.noise])
        y = torch.cat([inputs.y, torch.full_like(inputs.y, 1000)])
        times = time_grid(STEPS, SHIFT, "rae")
        for now, after in itertools.pairwise(times):
            x = x + (after - now) * forward(x, torch.full((len(x),), now), y)
        return x[:BATCH]

    return run


def our_sampling(model: nn.Module, inputs: Inputs, guidance: Guidance | None) -> Work:
    settings = {"num_steps": STEPS, "shift": SHIFT, "end": "rae", "guidance": guidance}
    return lambda: sample(model, inputs.noise, inputs.y, **settings)


def few_steps() -> list[Row]:
    """Pictures' latents a second of a student beside its teacher's many steps: `few_step/<M>x<N>`."""
    torch.manual_seed(0)
    inputs, teacher = Inputs.draw(), build_dit(SHAPE).eval()
    student = TransitionDiT(TransitionShape(**dataclasses.asdict(SHAPE))).eval()
    start_from(student, teacher.state_dict())
    settings = {"shift": SHIFT, "end": "zero", "num_steps": MANY}
    sides = {"many": lambda: sample(teacher, inputs.noise, inputs.y, **settings)}
    for steps, inner in FEW:
        noise, times = torch.randn(steps, *inputs.noise.shape), time_grid(inner, SHIFT, "zero")
        few = {"num_steps": steps, "shift": SHIFT, "inner_noise": noise, "inner_times": times}
        sides[f"{steps}x{inner}"] = lambda few=few: sample_transitions(student, inputs.noise, inputs.y, **few)
    measured = seconds(sides, repeats=REPEATS, clock=time.process_time)
    note = f"a student of TMD, untrained; baseline: its teacher's {MANY} Euler steps; pixel decoder left out"
    return [
        make_row(f"few_step/{name}", "samples/s", BATCH / value, BATCH / measured["many"], note)
        for name, value in measured.items()
        if name != "many"
    ]


def works() -> dict[str, tuple[Work, Work | None]]:
    """Ours and theirs of every row."""
    torch.manual_seed(0)
    inputs = Inputs.draw()
    model, weaker = build_dit(SHAPE), build_dit(SHAPE)
    for parameter in [*model.parameters(), *weaker.parameters()]:
        if parameter.requires_grad:
            parameter.data.normal_(std=0.02)
    trained = copy.deepcopy(model).train()
    model, weaker = model.eval(), weaker.eval()
    half = Guidance(kind="cfg", scale=SCALE, interval=(0.9, 1.0))
    ours = {
        "train": our_training(trained, inputs),
        "sample": our_sampling(model, inputs, None),
        "sample_cfg": our_sampling(model, inputs, half),
        "sample_autoguidance": our_sampling(
            model, inputs, Guidance(kind="autoguidance", scale=SCALE, model=weaker)
        ),
    }
    repo = os.environ.get("RAE_REPO")
    if not repo:
        return {name: (work, None) for name, work in ours.items()}
    theirs, their_weaker = (official_model(Path(repo), each).eval() for each in (model, weaker))
    mine, other = our_sampling(model, inputs, None)(), official_sampling(theirs.forward, inputs)()
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
    official = {
        "train": official_training(copy.deepcopy(theirs).train(), inputs),
        "sample": official_sampling(theirs.forward, inputs),
        "sample_cfg": official_sampling(
            lambda x, t, y: theirs.forward_with_cfg(x, t, y, SCALE, half.interval), inputs
        ),
        "sample_autoguidance": official_sampling(
            lambda x, t, y: theirs.forward_with_autoguidance(x, t, y, SCALE, their_weaker.forward), inputs
        ),
    }
    return {name: (work, official[name]) for name, work in ours.items()}


NOTES = {
    "train": "one step: loss, gradient, clipping, AdamW, average",
    "sample": f"{STEPS} Euler steps, no guidance",
    "sample_cfg": f"{STEPS} Euler steps, guidance on the first only (interval 0.9 to 1)",
    "sample_autoguidance": f"{STEPS} Euler steps, weaker model of the same size",
}


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, (ours, theirs) in works().items():
        sides = {"ours": ours} | ({"theirs": theirs} if theirs else {})
        measured = seconds(sides, repeats=REPEATS, clock=time.process_time)
        rates = {side: BATCH / value for side, value in measured.items()}
        note = NOTES[name] if theirs else f"{NOTES[name]}; {ABSENT}"
        rows.append(make_row(name, "samples/s", rates["ours"], rates.get("theirs"), note))
        if name in ("train", "sample"):
            peaks = {side: peak_bytes(work) / 2**20 for side, work in sides.items()}
            note = "tensors over what was held before" + ("" if theirs else f"; {ABSENT}")
            rows.append(
                make_row(
                    f"memory/{name}", "MiB", peaks["ours"], peaks.get("theirs"), note, higher_is_better=False
                )
            )
    rows += few_steps()
    widths = " + ".join(f"{width}x{depth}" for width, depth in zip(*list(SIZE.values())[:2], strict=True))
    setting = f"processor time of 1 thread, fp32, {widths}, 768 channels, 256 tokens, batch {BATCH}"
    publish("rae", rows, setting=setting)


if __name__ == "__main__":
    main()
