"""Stage: what a picture costs, by count, by FLOPs and by the clock, beside the teacher's many steps.

`python -m rae_bridge.distillation.cost <config.yaml> <out_dir>`. FLOPs are counted while one picture is made,
of every matrix product, convolution and attention; the pixel decoder's stand apart. Seconds are a picture's,
decoding included, of model and teacher in turns on one machine.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main
from rae_bridge.codec import check_tokens, load_codec
from rae_bridge.config import GenerateConfig
from rae_bridge.distillation.config import CostConfig
from rae_bridge.dit import DiTDH
from rae_bridge.generate import (
    TrainedFlow,
    inner_noise_of_samples,
    latents_from_noise,
    noise_of_samples,
    pictures_from_noise,
)
from rae_bridge.latents import to_tokens

Work = Callable[[], object]


def effective_steps(model: DiTDH, num_steps: int, num_inner: int) -> float:
    """M (1 + (N - 1) H / L): backbones and heads in whole networks, by the number of blocks.

    Source: TMD (arXiv:2601.09881), Sec. 3.
    """
    head = model.config.depth[1] / sum(model.config.depth)
    return num_steps * (1 + (num_inner - 1) * head)


def count_flops(work: Work) -> int:
    """FLOPs of what `work` computes: two to a multiply and add."""
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter does not see the CPU's fused attention
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def least_seconds(works: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """The least wall time of each, taken in turns after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if i:
                times[name].append(time.perf_counter() - started)
    return {name: min(each) for name, each in times.items()}


def run(config: CostConfig, out_dir: Path) -> dict:
    """Count and measure; see the module's docstring."""
    torch.set_flush_denormal(True)
    device = str(require_device(config.device))
    flows = {
        "model": TrainedFlow.load(config.model, device),
        "teacher": TrainedFlow.load(config.teacher, device),
    }
    codec = load_codec(config.encoder, decoder=config.decoder, device=device)
    for folder in (config.model, config.teacher):
        check_tokens(ROOT / folder, codec.encoder)
    steps = {"model": (config.num_steps, config.inner_steps), "teacher": (config.teacher_steps, None)}

    def arguments(name: str, num: int) -> tuple:
        flow, (num_steps, inner_steps) = flows[name], steps[name]
        how = {"model": "", "encoder": config.encoder, "device": config.device}
        settings = GenerateConfig(num_samples=num, num_steps=num_steps, inner_steps=inner_steps, **how)
        noise = noise_of_samples(0, range(num), flow.latent_shape).to(device)
        inner = inner_noise_of_samples(flow, 0, range(num), num_steps)
        y = torch.arange(num, device=device) % flow.model.num_classes
        return noise, y, settings, None, None if inner is None else inner.to(device)

    one = arguments("model", 1)
    generator = count_flops(lambda: latents_from_noise(flows["model"], *one))
    decoder = count_flops(lambda: codec.decode(to_tokens(one[0])))
    time_of_one = torch.ones(1, device=device)
    forward = count_flops(lambda: flows["teacher"].model(one[0], time_of_one, one[1]))

    def pictures(name: str) -> Work:
        noise, *rest = arguments(name, config.batch_size)
        return lambda: pictures_from_noise(flows[name], codec, noise, *rest)

    seconds = least_seconds({name: pictures(name) for name in flows}, config.repeats)
    student = flows["model"].student or {}
    num_inner = config.inner_steps or student.get("inner_steps", 1)
    values = {
        "steps": (config.num_steps, "", False),
        "nfe": (effective_steps(flows["model"].model, config.num_steps, num_inner), "", False),
        "nfe/flops": (generator / forward, "", False),
        "gflops": (generator / 1e9, "GFLOPs", False),
        "gflops/decoder": (decoder / 1e9, "GFLOPs", None),
        "seconds": (seconds["model"] / config.batch_size, "s", False),
        "times faster": (seconds["teacher"] / seconds["model"], "x", True),
    }
    return {
        "metrics": {
            key: {
                "value": float(value),
                "unit": unit,
                "higher_is_better": better,
                "num_samples": config.batch_size,
            }
            for key, (value, unit, better) in values.items()
        },
        "head_share": 1 - _backbone_flops(flows["teacher"].model, *one[:2]) / forward,
        "teacher_steps": config.teacher_steps,
    }


def _backbone_flops(model: DiTDH, noise: torch.Tensor, y: torch.Tensor) -> int:
    return count_flops(lambda: model.backbone(noise, torch.ones(1, device=noise.device), y))


if __name__ == "__main__":
    main(CostConfig, run)
