"""Stage: pictures from a trained diffusion transformer, equally many of each class.

`python -m rae_bridge.generate <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.generate ...`) writes out_dir/samples.npz (ADM's layout: arr_0, uint8 M S S 3; and labels M), or
tar shards of PNG files. Sample i has class i mod K and its noise from (seed, i) alone: the same picture
whatever the batch size and the number of processes. Finished batches are kept, so an interrupted run goes on
where it stopped, on any number of processes. `stream_samples` streams the same pictures without any file.

Source of the protocol: RAE (src/sample_ddp.py at a4d18c4, `--label-sampling equal`).
"""

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from encoder.data.tars import add_member
from encoder.frozen import resize_square
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT, load, resolve
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress, write_json
from encoder.token_store import Encoded, TokenWriter
from encoder.tokens import SHARD_BYTES, about_tokens
from encoder.training.optim import autocast
from rae_bridge.codec import Codec, check_tokens, load_codec, to_images
from rae_bridge.config import GenerateConfig, GuidanceConfig, Weights
from rae_bridge.dit import DiT
from rae_bridge.latents import LatentStatistics, to_tokens
from rae_bridge.parts import IMAGES, PARTS, batches, own, path_of, write_npz
from rae_bridge.sample import Guidance, sample, sample_transitions, time_grid
from rae_bridge.transition import STUDENTS, TransitionDiT, load_model
from rae_bridge.weights_folder import WeightsFolder, check_guide

TOKENS = "tokens"  # folder of the samples' tokens, and their name in the files of batches
BEST = "best.json"  # in the folder of a sweep: the guidance that it found best
DRAWN_WITH = "guidance.json"  # beside the files of batches: the guidance from a sweep that they have


@dataclass(frozen=True, slots=True)
class TrainedFlow:
    """A trained diffusion transformer with what sampling from it takes."""

    model: DiT
    statistics: LatentStatistics
    shift: float
    student: Mapping[str, Any] | None = None  # what flow.json says of one by `rae_bridge.distill`
    folder: Path | None = None  # None: it was not read from one

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """D h w"""
        config = self.model.config
        return config.in_channels, config.input_size, config.input_size

    @staticmethod
    def load(folder: Path | str, device: str = "cpu", weights: Weights = "ema") -> "TrainedFlow":
        """Read a weights folder by `rae_bridge.train` or `rae_bridge.distill`; online weights lie in the
        checkpoint beside it.

        Raises:
            FileNotFoundError, ValueError: it is not one, or is damaged.
        """
        about = WeightsFolder.read(folder)
        model = load_model(about.path)
        if weights == "online":
            model.load_state_dict(about.online_weights())
        model = model.to(device).requires_grad_(False)
        return TrainedFlow(model, about.statistics, about.shift, about.student, about.path)


def make_guidance(config: GuidanceConfig | None, flow: TrainedFlow, device: str) -> Guidance | None:
    """Guidance as configured for the model of `flow`.

    Raises:
        ValueError: cfg for a model without a null class; autoguidance without a weaker model, or by one of
            other tokens, statistics or classes, or by a student; and what `Guidance` refuses.
    """
    if config is None:
        return None
    if config.kind == "cfg" and not flow.model.config.has_null_class:
        raise ValueError("cfg needs a model trained with class_dropout_prob > 0; this one has no null class")
    weaker = None
    if config.model is not None:
        check_guide(WeightsFolder.read(flow.folder), WeightsFolder.read(config.model))
        weaker = TrainedFlow.load(config.model, device).model
    return Guidance(kind=config.kind, scale=config.scale, interval=config.interval, model=weaker)


def chosen_guidance(config: GenerateConfig) -> GuidanceConfig | None:
    """The configured guidance, or the one that a sweep found best.

    Raises:
        FileNotFoundError: the sweep's folder has none.
    """
    if config.guidance_from is None:
        return config.guidance
    path = ROOT / config.guidance_from / BEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: guidance_from is a folder by rae_bridge.sweep")
    return load(GuidanceConfig, path)


def keep_guidance(chosen: GuidanceConfig, folder: Path, ranks: Ranks) -> None:
    """Write, beside the batches that are kept, which guidance from a sweep they are drawn with.

    Raises:
        ValueError: there are some that another guidance drew: the sweep has found another since.
    """
    path = folder / PARTS / DRAWN_WITH
    if path.is_file() and (before := load(GuidanceConfig, path)) != chosen:
        raise ValueError(
            f"{folder / PARTS} holds batches drawn with {before}, the sweep's {BEST} says {chosen}; delete "
            "that folder to draw all anew"
        )
    if ranks.is_main:
        write_json(path, resolve(chosen))


def noise_of_samples(seed: int, indices: range, shape: tuple[int, ...], what: str = "sample") -> Tensor:
    """Standard normal noise (B, *shape), row by row from (seed, index)."""
    rows = [torch.randn(shape, generator=checkpoint.step_generator(seed, i, what)) for i in indices]
    return torch.stack(rows)


def inner_noise_of_samples(flow: TrainedFlow, seed: int, indices: range, num_steps: int) -> Tensor | None:
    """Noise of a student's inner flow (num_steps B D h w), by (seed, index, step); None of other models."""
    if flow.model.name not in STUDENTS:
        return None
    of_steps = (noise_of_samples(seed, indices, flow.latent_shape, f"inner/{i}") for i in range(num_steps))
    return torch.stack(list(of_steps))


def check_sampler(flow: TrainedFlow, config: GenerateConfig, guidance: Guidance | None) -> None:
    """Raises: ValueError for a way of sampling that the model does not know."""
    if config.inner_steps is not None and flow.model.name != TransitionDiT.name:
        raise ValueError(
            f"inner_steps {config.inner_steps} needs a model whose head has an inner flow: method=tmd"
        )
    if flow.student is not None and (guidance, config.solver, config.end) != (None, "euler", "zero"):
        raise ValueError(
            "a student takes solver=euler, end=zero and no guidance: what guidance it has is distilled in"
        )


def latents_from_noise(
    flow: TrainedFlow,
    noise: Tensor,
    y: Tensor,
    config: GenerateConfig,
    guidance: Guidance | None,
    inner_noise: Tensor | None = None,
) -> Tensor:
    """Normalised latents for noise (both B D h w) and classes y (B,).

    Raises:
        ValueError: `check_sampler` refuses.
    """
    check_sampler(flow, config, guidance)
    steps = {"num_steps": config.num_steps, "shift": flow.shift}
    if inner_noise is None:
        how = {"guidance": guidance, "solver": config.solver, "end": config.end}
        return sample(flow.model, noise, y, **steps, **how)
    num_inner = config.inner_steps or flow.student["inner_steps"]
    inner_times = time_grid(num_inner, flow.student["inner_shift"], "zero")
    return sample_transitions(flow.model, noise, y, inner_noise=inner_noise, inner_times=inner_times, **steps)


def pictures_from_noise(
    flow: TrainedFlow,
    codec: Codec,
    noise: Tensor,
    y: Tensor,
    config: GenerateConfig,
    guidance: Guidance | None,
    inner_noise: Tensor | None = None,
) -> Tensor:
    """uint8 images (B S S 3) for noise (B D h w), a student's inner noise and classes y (B,)."""
    return decode_tokens(codec, tokens_from_noise(flow, noise, y, config, guidance, inner_noise), config)


def tokens_from_noise(
    flow: TrainedFlow,
    noise: Tensor,
    y: Tensor,
    config: GenerateConfig,
    guidance: Guidance | None,
    inner_noise: Tensor | None = None,
) -> Tensor:
    """The encoder's tokens (B N D) that `pictures_from_noise` decodes."""
    device = str(next(flow.model.parameters()).device)  # of several processes, each has its own
    noise, y = noise.to(device), y.to(device)
    inner_noise = None if inner_noise is None else inner_noise.to(device)
    with autocast(config.precision, device.partition(":")[0]):
        latents = latents_from_noise(flow, noise, y, config, guidance, inner_noise)
    return to_tokens(flow.statistics.denormalise(latents))


def decode_tokens(codec: Codec, tokens: Tensor, config: GenerateConfig) -> Tensor:
    """uint8 images (B S S 3) of tokens (B N D)."""
    pixels = codec.decode(tokens)
    return to_images(resize_square(pixels, config.image_size or codec.image_size), config.rounding)


def stream_samples(
    flow: TrainedFlow, codec: Codec, config: GenerateConfig, guidance: Guidance | None, ranks: Ranks
) -> Iterator[tuple[range, Tensor]]:
    """This process's samples, batch by batch: their indices and uint8 images (B S S 3)."""
    for indices in own(batches(range(config.num_samples), config.batch_size), ranks):
        yield indices, draw_samples(flow, codec, config, guidance, indices)


def draw_samples(
    flow: TrainedFlow, codec: Codec, config: GenerateConfig, guidance: Guidance | None, indices: range
) -> Tensor:
    """uint8 images (B S S 3) of some samples."""
    return decode_tokens(codec, draw_tokens(flow, config, guidance, indices), config)


def draw_tokens(
    flow: TrainedFlow, config: GenerateConfig, guidance: Guidance | None, indices: range
) -> Tensor:
    """Tokens (B N D) of some samples."""
    noise = noise_of_samples(config.seed, indices, flow.latent_shape)
    labels = torch.tensor(indices) % flow.model.num_classes
    inner = inner_noise_of_samples(flow, config.seed, indices, config.num_steps)
    return tokens_from_noise(flow, noise, labels, config, guidance, inner)


def write_samples_tokens(folder: Path, codec: Codec, parts: list[Path], labels: Tensor) -> None:
    """The samples' tokens as a folder that `encoder.token_store` reads, in half precision: shards of whole
    batches, of which one is in memory at a time."""
    per_shard = max(1, SHARD_BYTES // checkpoint.load_tensors(parts[0])[TOKENS].nbytes)
    groups = [parts[start : start + per_shard] for start in range(0, len(parts), per_shard)]
    folder.mkdir(exist_ok=True)
    about, sources = (
        about_tokens(codec.encoder, "fp16"),
        [f"samples from {group[0].stem}" for group in groups],
    )
    writer, done = TokenWriter(folder, about, sources), 0
    for number, group in enumerate(groups):
        tokens = torch.cat([checkpoint.load_tensors(part)[TOKENS] for part in group])
        indices = range(done, done + len(tokens))
        held = {"tokens": tokens, "flipped": None, "labels": labels[indices.start : indices.stop]}
        writer.write(number, Encoded(keys=[f"{i:08d}" for i in indices], **held))
        done = indices.stop
    writer.finish(0.0)


def write_shards(folder: Path, parts: list[Path], labels: Tensor, shard_size: int) -> int:
    """Tar files of `shard_size` pictures each, <index>.png beside <index>.cls; returns how many."""
    pictures = (image for part in parts for image in checkpoint.load_tensors(part)[IMAGES].numpy())
    for start in range(0, len(labels), shard_size):
        with tarfile.open(folder / f"{start // shard_size:05d}.tar", "w") as shard:
            for i in range(start, min(start + shard_size, len(labels))):
                png = io.BytesIO()
                Image.fromarray(next(pictures)).save(png, "png")
                for suffix, content in (("png", png.getvalue()), ("cls", str(int(labels[i])).encode())):
                    add_member(shard, f"{i:08d}.{suffix}", content)
    return -(-len(labels) // shard_size)


def run(config: GenerateConfig, out_dir: Path) -> dict:
    """Sample, decode and write; see the module's docstring."""
    torch.set_flush_denormal(True)
    ranks = Ranks.start(config.device)
    flow = TrainedFlow.load(config.model, ranks.device, config.weights)
    codec = load_codec(config.encoder, decoder=config.decoder, device=ranks.device)
    check_tokens(ROOT / config.model, codec.encoder)
    chosen = chosen_guidance(config)
    guidance = make_guidance(chosen, flow, ranks.device)
    check_sampler(flow, config, guidance)

    (out_dir / PARTS).mkdir(exist_ok=True)
    if config.guidance_from is not None:
        keep_guidance(chosen, out_dir, ranks)
    if ranks.is_main:
        progress(out_dir, 0, config.num_samples, "samples")  # marks the folder as begun with this config
    ranks.wait()
    everyone = batches(range(config.num_samples), config.batch_size)
    for indices in own(everyone, ranks):
        path = path_of(out_dir, indices)
        if not path.is_file():
            tokens = draw_tokens(flow, config, guidance, indices)
            made = {IMAGES: decode_tokens(codec, tokens, config)}
            if config.keeps_tokens:
                made[TOKENS] = tokens.half().cpu()
            checkpoint.save_tensors(path, made)
        if ranks.is_main:
            progress(out_dir, indices.stop, config.num_samples, "samples")
    ranks.wait()

    if ranks.is_main:
        paths = [path_of(out_dir, indices) for indices in everyone]
        labels = torch.arange(config.num_samples) % flow.model.num_classes
        if config.keeps_tokens:
            write_samples_tokens(out_dir / TOKENS, codec, paths, labels)
        if config.output == "npz":
            write_npz(out_dir / "samples.npz", paths, labels)
        else:
            write_shards(out_dir, paths, labels, config.shard_size)
        shutil.rmtree(out_dir / PARTS)
    ranks.wait()  # no process is done before the file is
    size = config.image_size or codec.image_size
    about = {"num_samples": config.num_samples, "num_steps": config.num_steps, "image_size": size}
    return about | ({"guidance": resolve(chosen)} if chosen is not None else {})


if __name__ == "__main__":
    main(GenerateConfig, run)
