"""Stage: the guidance whose pictures the judge likes best, of one grid, on validation prompts.

`python -m harness.scene_eval.choose <config.yaml> <out_dir>` draws every validation prompt from the same
noise at each scale, and writes out_dir/scales.json (the score of each, without guidance too) and best.json,
which `guidance_from` of `rae_bridge.text.generate` reads. Each scale is kept once it is known.
"""

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress, write_json
from harness.scene_eval.config import JUDGE, SCORE, VALIDATION, ChooseConfig
from harness.scene_eval.judge import Judge, name_of
from harness.scene_eval.prompts import read_prompts
from harness.scene_eval.scores import judge_all, metrics_of
from rae_bridge.codec import check_tokens, load_codec
from rae_bridge.config import GuidanceConfig
from rae_bridge.generate import BEST, noise_of_samples, pictures_from_noise
from rae_bridge.parts import batches
from rae_bridge.text.generate import load_told, text_guidance, text_of_samples

RESULT = "scales.json"


def run(config: ChooseConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)
    sampling = config.sampling
    device = str(require_device(sampling.device))
    prompts = read_prompts(ROOT / config.prompts, VALIDATION)
    judge = Judge.load(ROOT / config.judge / JUDGE, device)
    texts = [each.prompt for each in prompts]
    flow = load_told(sampling.model, texts, device, sampling.text_encoder)
    codec = load_codec(sampling.encoder, decoder=sampling.decoder, device=device)
    check_tokens(ROOT / sampling.model, codec.encoder)
    sampled = sampling.as_generate(len(prompts))

    def draw(guidance: GuidanceConfig | None) -> Tensor:
        drawn = []
        for indices in batches(range(sampled.num_samples), sampling.batch_size):
            noise = noise_of_samples(sampling.seed, indices, flow.latent_shape)
            y = text_of_samples(indices, sampling.num_images)
            drawn.append(pictures_from_noise(flow, codec, noise, y, sampled, text_guidance(guidance)))
        return torch.cat(drawn)

    labels = text_of_samples(range(sampled.num_samples), sampling.num_images).tolist()
    path = out_dir / RESULT
    scores: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    settings = {"1": None} | {f"{scale:g}": GuidanceConfig(kind="cfg", scale=scale, interval=config.interval)
                              for scale in config.scales}  # fmt: skip
    for name, guidance in settings.items():
        if name not in scores:
            seen = list(judge.read(draw(guidance).numpy(), device=device))
            about = {"judge": "", "num_resamples": 2, "seed": 0}
            scores[name] = metrics_of(judge_all(prompts, seen, labels), **about)[SCORE].value
            write_json(path, scores)
        progress(out_dir, len(scores), len(settings), "scales")
    best = max((name for name in settings if name != "1"), key=scores.__getitem__)
    write_json(out_dir / BEST, dataclasses.asdict(settings[best]))
    return {"scores": {name: scores[name] for name in settings}, "best": best,
            "judge": name_of(ROOT / config.judge / JUDGE)}  # fmt: skip


if __name__ == "__main__":
    main(ChooseConfig, run)
