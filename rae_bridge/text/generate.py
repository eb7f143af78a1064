"""Stage: pictures of prompts from a DiT-DH that is told texts.

`python -m rae_bridge.text.generate <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.text.generate ...`) writes out_dir/samples.npz (ADM's layout: arr_0, uint8 M S S 3; labels M, the
numbers of the prompts) and prompts.jsonl, or the pictures in GenEval's or DPG-Bench's own layout. Picture k
of prompt p has its noise from (seed, p * num_images + k) alone. Finished batches are kept, so an interrupted
run goes on where it stopped.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder.models.pretrained import WEIGHTS_FILE
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, resolve
from encoder.runtime.files import replacing
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress, sha256_file
from rae_bridge.codec import check_tokens, load_codec
from rae_bridge.config import GuidanceConfig
from rae_bridge.generate import (
    TrainedFlow,
    chosen_guidance,
    keep_guidance,
    noise_of_samples,
    pictures_from_noise,
)
from rae_bridge.parts import IMAGES, PARTS, batches, own, path_of, write_npz
from rae_bridge.sample import Guidance
from rae_bridge.text.bank import TextBank
from rae_bridge.text.config import GenerateTextConfig
from rae_bridge.text.encoders import load_text_encoder
from rae_bridge.text.layouts import WRITERS, Prompt, read_prompts
from rae_bridge.text.model import Captioned, TextDiT
from rae_bridge.text.weights import TextWeights

SAMPLES, PROMPTS = "samples.npz", "prompts.jsonl"


def load_told(
    folder: Path | str, texts: Sequence[str], device: str = "cpu", text_encoder: str | None = None
) -> TrainedFlow:
    """A trained model that is told `texts` by their numbers, with what sampling from it takes.

    text_encoder: a folder in place of the one that the model was trained with, which must be equal.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or damaged, or the text encoder is another.
    """
    about = TextWeights.read(folder)
    source = text_encoder or about.text["source"]
    encoder = load_text_encoder(source, about.text["max_length"], device)
    about.check_texts(encoder.about)
    model = TextDiT.from_pretrained(about.path).to(device).requires_grad_(False)
    told = Captioned(model, TextBank.encode(texts, encoder)).eval()
    return TrainedFlow(told, about.statistics, about.shift, folder=about.path)


def text_guidance(config: GuidanceConfig | None) -> Guidance | None:
    """Guidance away from the empty text."""
    return config and Guidance(kind=config.kind, scale=config.scale, interval=config.interval)


def text_of_samples(indices: range, num_images: int) -> Tensor:
    """The prompts (B,) of samples."""
    return torch.tensor(indices) // num_images


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """One a line, with all that its own line said."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(each.record)}\n" for each in prompts))


def run(config: GenerateTextConfig, out_dir: Path) -> dict:
    """Sample, decode and write; see the module's docstring."""
    torch.set_flush_denormal(True)
    ranks = Ranks.start(config.device)
    prompts = read_prompts(ROOT / config.prompts, config.limit)
    texts = [prompt.text for prompt in prompts]
    flow = load_told(config.model, texts, ranks.device, config.text_encoder)
    codec = load_codec(config.encoder, decoder=config.decoder, device=ranks.device)
    check_tokens(ROOT / config.model, codec.encoder)
    sampled = config.as_generate(len(prompts))
    chosen = chosen_guidance(sampled)
    guidance = text_guidance(chosen)

    (out_dir / PARTS).mkdir(exist_ok=True)
    if config.guidance_from is not None:
        keep_guidance(chosen, out_dir, ranks)
    everyone = batches(range(sampled.num_samples), config.batch_size)
    if ranks.is_main:
        progress(out_dir, 0, sampled.num_samples, "samples")  # marks the folder as begun with this config
    ranks.wait()
    for indices in own(everyone, ranks):
        path = path_of(out_dir, indices)
        if not path.is_file():
            noise = noise_of_samples(config.seed, indices, flow.latent_shape)
            y = text_of_samples(indices, config.num_images)
            images = pictures_from_noise(flow, codec, noise, y, sampled, guidance)
            checkpoint.save_tensors(path, {IMAGES: images})
        if ranks.is_main:
            progress(out_dir, indices.stop, sampled.num_samples, "samples")
    ranks.wait()

    if ranks.is_main:
        paths = [path_of(out_dir, indices) for indices in everyone]
        if config.output == "npz":
            write_npz(
                out_dir / SAMPLES, paths, text_of_samples(range(sampled.num_samples), config.num_images)
            )
            write_prompts(out_dir / PROMPTS, prompts)
        else:
            images = torch.cat([checkpoint.load_tensors(path)[IMAGES] for path in paths]).numpy()
            WRITERS[config.output](out_dir, prompts, images)
        shutil.rmtree(out_dir / PARTS)
    ranks.wait()
    about = {"num_prompts": len(prompts), "num_samples": sampled.num_samples, "num_steps": config.num_steps}
    about |= {"model": sha256_file(ROOT / config.model / WEIGHTS_FILE)}
    return about | ({"guidance": resolve(chosen)} if chosen is not None else {})


if __name__ == "__main__":
    main(GenerateTextConfig, run)
