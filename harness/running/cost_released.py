"""What the stages on real sources compute and leave on the disk, from the config files of the released
networks and from counts alone: for `--plan`. No torch.

FLOPs are those of `harness.running.cost`; what gradient checkpointing computes again is not counted.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.models.shapes import SHIFTED, VaeShape, ViTShape
from encoder.options import EncoderConfig
from encoder.runtime.config import ROOT
from encoder.training.flops import (
    VGG16_FLOPS,
    decoder_flops,
    encoder_flops,
    num_parameters,
    sample_flops,
    transformer_flops,
    transformer_parameters,
    vae_flops,
)
from encoder.training.options import TrainConfig
from encoder.training.plan import vae_shape
from harness.running.cost import FP32, above, dit_flops, pixel_decoder_flops
from harness.running.stages import Stage
from rae_bridge.distillation.flops import num_batches, step_flops
from rae_bridge.flops import dit_parameters, part_flops

# Records of LLaVA's files where they are too large to count for a plan, and tokens of their texts: assumed
RECORDS = {
    "blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_298,
    "open-llava-next_instruct_mix1M.json": 1_000_000,
}  # fmt: skip
PARQUET_RECORDS = 779_289  # of LLaVA-NeXT-Data, by its card
COUNTED_BYTES = 64e6
TEXT, QUESTION = {1: 30, 2: 250}, 70
# LLaVA-NeXT's picture in its views: tokens to one view's (mean over sides uniform in 64..1600 px), most views
NEXT_TOKENS, NEXT_VIEWS = 3.6, 5
QUESTIONS = {
    "seedbench": 14_233, "pope": 9_000, "mme": 2_374, "gqa": 12_578, "scienceqa": 4_241,
    "scienceqa_img": 2_017,
}  # fmt: skip
IMAGENET, IMAGENET_CLASSES = 1_281_167, 1000
DINO_FLOPS = transformer_flops(785, 384, 12)  # ViT-S/8 at 224 px: the discriminator's backbone


@dataclass(frozen=True, slots=True)
class Tower:
    """A frozen encoder as its config files describe it."""

    flops: float  # of a picture, as bf16's
    num_tokens: int
    width: int
    side: int  # pixels of the pictures that it sees


def released_flops(stage: Stage) -> float | None:
    """FLOPs of a stage; 0 where they are not worth counting, None where a config file is missing or odd."""
    return _counted(_FLOPS, stage)


def released_disk_mb(stage: Stage) -> float:
    """What a stage leaves on the disk at its largest, checkpoints included; 0 where that is not known."""
    return (_counted(_BYTES, stage) or 0.0) / 1e6


def is_released(stage: Stage) -> bool:
    """Whether a stage stands on a released encoder, by the paths of its weights, or on one that is trained on
    real sources, or is that training."""
    made = _training(stage)
    return above(stage, "harness.described") is not None or (
        made is not None and made.config.stream is not None
    )


def _training(stage: Stage) -> Stage | None:
    """The training of a stage's encoder, its last phase, or the stage itself if it is one."""
    return stage if stage.module == "encoder.train" else above(stage, "encoder.train")


def _counted(counts: Mapping[str, Callable[[Stage], float]], stage: Stage) -> float | None:
    count = counts.get(stage.module)
    try:
        return count(stage) if count is not None else 0.0
    except (OSError, ValueError, KeyError):  # whatever is wrong there, `check` says
        return None


def tower(config: EncoderConfig) -> Tower:
    """Sizes and FLOPs of an OpenVision 3 release with its VAE, or of a CLIP's vision tower.

    Raises: OSError, ValueError, KeyError: a file is missing, or is not what it should be.
    """
    scheme, _, folder = config.source.partition(":")
    if scheme == "clip":
        held = _read(ROOT / folder / "config.json")
        vision = held.get("vision_config", held)
        width, heads = vision["hidden_size"], vision["num_attention_heads"]
        shape = ViTShape(
            image_size=vision["image_size"], patch_size=vision["patch_size"],
            in_channels=vision.get("num_channels", 3), width=width, layers=vision["num_hidden_layers"],
            head_width=width // heads, mlp_width=vision["intermediate_size"],
        )  # fmt: skip
        return Tower(FP32 * encoder_flops(shape), shape.grid**2, width, shape.image_size)
    model = _read(ROOT / config.source / "open_clip_config.json")["model_cfg"]
    sizes = {key: model["vision_cfg"][key] for key in ("image_size", "patch_size", "in_channels", "width")}
    more = {"layers": model["vision_cfg"]["layers"], "head_width": model["vision_cfg"]["head_width"]}
    shape = ViTShape(**sizes, **more, embed_dim=model["embed_dim"])
    held = _read(ROOT / str(config.vae).removesuffix(SHIFTED) / "config.json")
    vae = VaeShape(
        block_out_channels=tuple(held["block_out_channels"]), layers_per_block=held["layers_per_block"],
        latent_channels=held["latent_channels"], norm_num_groups=held["norm_num_groups"],
    )  # fmt: skip
    side = vae.downsample * shape.image_size
    flops = FP32 * (encoder_flops(shape) + vae_flops(vae, side)[0])
    return Tower(flops, shape.grid**2, shape.width, side)


def trained_tower(config: TrainConfig) -> Tower:
    """The same of an OpenVision 3 by its training's config, and of its VAE."""
    shape, vae = config.openvision3.encoder, vae_shape(config.vae)
    side = vae.downsample * shape.image_size
    flops = FP32 * (encoder_flops(shape) + vae_flops(vae, side)[0])
    return Tower(flops, shape.grid**2, shape.width, side)


def language_model_flops(config: Mapping[str, Any], num_tokens: int) -> float:
    """Forward FLOPs of a causal language model as its config.json describes it, logits of every token."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    inner = heads * (config.get("head_dim") or width // heads)
    blocks = 2.0 * num_tokens * config["num_hidden_layers"] * (_block(config) + 2 * num_tokens * inner)
    return blocks + 2.0 * num_tokens * width * config["vocab_size"]


def language_model_parameters(config: Mapping[str, Any]) -> float:
    """Weights of its matrices."""
    ends = (1 if config.get("tie_word_embeddings") else 2) * config["vocab_size"] * config["hidden_size"]
    return config["num_hidden_layers"] * _block(config) + ends


def _block(config: Mapping[str, Any]) -> float:
    """Weights of one block: queries, keys, values, output, and an MLP of three matrices."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    groups = config.get("num_key_value_heads") or heads
    return 2 * width * head * (heads + groups) + 3 * width * config["intermediate_size"]


def count_records(path: Path) -> int:
    """Conversations in a file of LLaVA's, or in a folder of parquet files; the published number where it is
    large."""
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files or sum(file.stat().st_size for file in files) > COUNTED_BYTES:
            return PARQUET_RECORDS
        from pyarrow import parquet  # here: it would delay every plan

        return sum(parquet.read_metadata(file).num_rows for file in files)
    if path.stat().st_size > COUNTED_BYTES:
        return RECORDS[path.name]
    return path.read_bytes().count(b'"conversations"')


def count_pictures(folder: Path) -> int:
    """Train pictures of ImageNet, or of fewer classes than it has."""
    train = folder / "train"
    classes = [entry.path for entry in os.scandir(train) if entry.is_dir()] if train.is_dir() else []
    if not classes or len(classes) >= IMAGENET_CLASSES:
        return IMAGENET
    return sum(len(os.listdir(path)) for path in classes)


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text())


def _tower(stage: Stage) -> Tower:
    described = above(stage, "harness.described")
    return tower(described.config) if described is not None else trained_tower(_training(stage).config)


def _language_model(stage: Stage) -> Mapping[str, Any]:
    """The config of what the first of LLaVA's stages starts from."""
    while (before := above(stage, "llava_bridge.train")) is not None:
        stage = before
    return _read(ROOT / stage.config.init / "config.json")


def _encoder_training_flops(stage: Stage) -> float:
    config = stage.config
    each = sum(sample_flops(config, vae_shape(config.vae)).values())
    return config.num_steps * config.batch_size * each


def _seen(stage: Stage) -> tuple[float, float]:
    """Of one picture in a training of LLaVA's: tokens that the language model sees, the tower's FLOPs."""
    seen, config = _tower(stage), stage.config
    if config.framework == "llava_next" and config.views == "tiles":
        return NEXT_TOKENS * seen.num_tokens, NEXT_VIEWS * seen.flops
    return seen.num_tokens, seen.flops


def _llava_flops(stage: Stage) -> float:
    config, (num_tokens, tower_flops) = stage.config, _seen(stage)
    num_tokens = (config.num_image_tokens or num_tokens) + TEXT[config.stage]
    passes = 2 if config.stage == 1 else 3  # a frozen language model has no weight gradients
    each = passes * language_model_flops(_language_model(stage), num_tokens) + tower_flops
    return config.num_epochs * sum(count_records(ROOT / path) for path in config.data) * each


def _answer_flops(stage: Stage) -> float:
    num_tokens, tower_flops = _seen(above(stage, "llava_bridge.train"))
    each = language_model_flops(_language_model(stage), num_tokens + QUESTION) + tower_flops
    return each * sum(QUESTIONS.get(name, 0) for name in stage.config.benchmarks)


def _dit_flops(stage: Stage) -> float:
    config, seen = stage.config, _tower(stage)
    each = 3 * dit_flops(config.size, seen.num_tokens, seen.width) + seen.flops
    return config.num_steps * config.batch_size * each + config.pictures.num_for_statistics * seen.flops


def _pixel_decoder_flops(stage: Stage) -> float:
    """Three passes of the decoder, of LPIPS' trunk and of the discriminator, once they take part."""
    config, seen = stage.config, _tower(stage)
    each = 3 * pixel_decoder_flops(config.size, seen.num_tokens, seen.width)
    if config.perceptual == "lpips":
        each += 3 * VGG16_FLOPS * _side(stage) ** 2 * (1 - config.perceptual_from)
    if config.adversarial is not None:
        learns, acts = 1 - config.adversarial.learns_from, 1 - config.adversarial.acts_from
        each += 2 * DINO_FLOPS * (learns + acts)
    num_encoded = _num_pictures(stage) if config.live is None else config.num_steps * config.batch_size
    return config.num_steps * config.batch_size * each + num_encoded * seen.flops


def _distilled_flops(stage: Stage) -> float:
    config, seen, teacher = stage.config, _tower(stage), above(stage, "rae_bridge.train").config
    each = step_flops(config, teacher.size, seen.num_tokens, seen.width) + num_batches(config) * seen.flops
    return config.num_steps * config.batch_size * each


def _sample_flops(stage: Stage) -> float:
    """A student's backbone is called once a step, its head `inner_steps` times."""
    config, seen = stage.config, _tower(stage)
    size = above(stage, "rae_bridge.train").config.size
    *backbone, head = part_flops(size, seen.num_tokens, seen.width)
    each = sum(backbone) + (config.inner_steps or 1) * head
    passes = 1 if config.guidance_from is None else 2
    return config.num_samples * (config.num_steps * passes * each + _decode(stage, seen))


def _sweep_flops(stage: Stage) -> float:
    """Every scale on every interval, guided from its start to its end: two passes a step."""
    config, seen = stage.config, _tower(stage)
    each = 2 * dit_flops(above(stage, "rae_bridge.train").config.size, seen.num_tokens, seen.width)
    num_points = len(config.scales) * (1 + len(config.ends))
    return num_points * config.num_samples * (config.default_steps * each + _decode(stage, seen))


def _reconstruct_flops(stage: Stage) -> float:
    seen = _tower(stage)
    return stage.config.limit * (seen.flops + _decode(stage, seen))


def _decode(stage: Stage, seen: Tower) -> float:
    """Of a picture from its tokens: by the pixel decoder that was trained for them, or the encoder's own."""
    trained = above(stage, "rae_bridge.train_decoder")
    if trained is not None:
        return FP32 * pixel_decoder_flops(trained.config.size, seen.num_tokens, seen.width)
    config = _training(stage).config
    latents = decoder_flops(config.openvision3.decoder, seen.num_tokens)
    return FP32 * (latents + vae_flops(vae_shape(config.vae), seen.side)[1])


def _num_pictures(stage: Stage) -> int:
    return stage.config.train_limit or count_pictures(ROOT / stage.config.data)


def _side(stage: Stage) -> int:
    """Pixels on a side of what a pixel decoder draws."""
    return stage.config.image_size or _tower(stage).side


def _encoder_training_bytes(stage: Stage) -> float:
    """A checkpoint (fp32 weights and moments) and the weights in fp16."""
    return 14.0 * sum(num_parameters(stage.config).values())


def _llava_bytes(stage: Stage) -> float:
    """bf16 weights, and a checkpoint: bf16 weights alone, or with fp32 weights and AdamW's moments."""
    of_weight = 2 + (2 if stage.config.stage == 1 else 14)
    return of_weight * language_model_parameters(_language_model(stage))


def _pixel_decoder_bytes(stage: Stage) -> float:
    """A checkpoint: fp32 weights, average, moments. Where pictures are kept, each with its fp16 tokens."""
    seen, size = _tower(stage), stage.config.size
    each = 3 * _side(stage) ** 2 + 2 * seen.num_tokens * seen.width
    kept = _num_pictures(stage) * each if stage.config.live is None else 0.0
    layers, mlp = size.decoder_num_hidden_layers, size.decoder_intermediate_size
    return kept + 16 * transformer_parameters(size.decoder_hidden_size, layers, mlp)


def _dit_bytes(stage: Stage) -> float:
    """A checkpoint (fp32 weights, average, moments) and the averaged weights."""
    return 20 * dit_parameters(stage.config.size)


def _distilled_bytes(stage: Stage) -> float:
    """As a DiT's; a second stage's checkpoint also holds the fake score and its moments."""
    held = 20 if stage.config.stage == 1 else 32
    return held * dit_parameters(above(stage, "rae_bridge.train").config.size)


def _pictures_bytes(num: str, num_sets: int) -> Callable[[Stage], float]:
    """Of sets of pictures, of which the batches and the whole are there at the same time."""
    return lambda stage: (
        2 * num_sets * 3.0 * getattr(stage.config, num) * (stage.config.image_size or 256) ** 2
    )


_FLOPS = {
    "encoder.train": _encoder_training_flops,
    "llava_bridge.evaluate": _answer_flops,
    "llava_bridge.train": _llava_flops,
    "rae_bridge.distill": _distilled_flops,
    "rae_bridge.generate": _sample_flops,
    "rae_bridge.reconstruct": _reconstruct_flops,
    "rae_bridge.sweep": _sweep_flops,
    "rae_bridge.train": _dit_flops,
    "rae_bridge.train_decoder": _pixel_decoder_flops,
}
_BYTES = {
    "encoder.train": _encoder_training_bytes,
    "llava_bridge.train": _llava_bytes,
    "rae_bridge.distill": _distilled_bytes,
    "rae_bridge.generate": _pictures_bytes("num_samples", 1),
    "rae_bridge.reconstruct": _pictures_bytes("limit", 2),
    "rae_bridge.train": _dit_bytes,
    "rae_bridge.train_decoder": _pixel_decoder_bytes,
}
