"""What the stages of a preset that trains everything itself compute, in FLOPs, from their configs alone: for
`--plan` where nothing was measured. Of another's weights and of one's own pictures nothing is known here. No
torch.

FLOPs are counted as in `encoder.training.flops`. Frozen networks run in fp32: their FLOPs count FP32 times.
Nothing is counted of data, metrics, optimisers and the starts of processes.
"""

from collections.abc import Callable

from encoder.blind import BLIND, blind_side
from encoder.data.options import ScenesConfig
from encoder.models.shapes import ViTShape
from encoder.options import EncoderConfig
from encoder.runtime.config import load
from encoder.training.flops import (
    decoder_flops,
    encoder_flops,
    sample_flops,
    text_flops,
    transformer_flops,
    vae_flops,
)
from harness.config import CONFIGS
from harness.running.stages import Stage
from llava_bridge.config import LlamaShape
from rae_bridge.config import TrainDiTConfig
from rae_bridge.flops import part_flops
from rae_bridge.shapes import DecoderSize, DiTSize

FP32 = 4.0  # of bf16's time: assumed
PIXELS_A_TOKEN = 16  # one way, of every encoder that a preset trains
# Tokens without the picture's, by llava_bridge's tokenizer on Scenes: means over 200 conversations
LESSON, CONVERSATION, QUESTION = 21, 100, 50
STAGE_TEXT = {1: 55, 2: 106}
NUM_DIMENSIONS, NUM_SETTINGS = 9, 3  # of Scenes-SEED and Scenes-POPE


class _UnknownError(ValueError):
    """A stage stands on something that the preset does not make."""


def stage_flops(stage: Stage) -> float | None:
    """FLOPs of a stage; 0 where they are not worth counting, None where its weights or pictures are not the
    preset's own."""
    count = _COUNTS.get(stage.module)
    try:
        return count(stage) if count is not None else 0.0
    except _UnknownError:
        return None


def dit_flops(size: DiTSize, num_tokens: int, in_channels: int) -> float:
    """Forward FLOPs of a DiT on one picture's latents."""
    return sum(part_flops(size, num_tokens, in_channels))


def llama_flops(shape: LlamaShape, num_tokens: int) -> float:
    """Forward FLOPs of the blocks; three matrices to an MLP. The vocabulary of Scenes is small."""
    return transformer_flops(num_tokens, shape.width, shape.depth, round(1.5 * shape.mlp_width))


def pixel_decoder_flops(size: DecoderSize, num_tokens: int, in_width: int) -> float:
    """Forward FLOPs of one picture."""
    width, depth = size.decoder_hidden_size, size.decoder_num_hidden_layers
    ends = 2.0 * num_tokens * width * (in_width + 3 * PIXELS_A_TOKEN**2)
    return ends + transformer_flops(num_tokens, width, depth, size.decoder_intermediate_size)


def above(stage: Stage, module: str) -> Stage | None:
    """The nearest stage of a module that this one depends on."""
    for source in stage.inputs:
        if source.module == module:
            return source
    return next(filter(None, (above(source, module) for source in stage.inputs)), None)


def _needed(stage: Stage, module: str) -> Stage:
    """As `above`, of a stage that cannot be counted without it."""
    source = above(stage, module)
    if source is None:
        raise _UnknownError(module)
    return source


def _scenes(stage: Stage) -> ScenesConfig:
    if above(stage, "harness.own_data") is not None:  # those further up are what the weights were trained on
        raise _UnknownError("harness.own_data")
    return _needed(stage, "encoder.data.scenes.write").config


def _made(stage: Stage) -> Stage | None:
    """The training of a stage's encoder, its last phase; None for the blind one, which computes nothing."""
    made = next((source for source in stage.inputs if source.module == "encoder.train"), None)
    if made is None and _config_of(stage).source != BLIND:
        raise _UnknownError("encoder.train")
    return made


def _config_of(stage: Stage) -> EncoderConfig:
    """Of an encoder that the preset does not train, by its name."""
    path = CONFIGS / "encoders" / f"{getattr(stage.config, 'encoder', None)}.yaml"
    if not path.is_file():
        raise _UnknownError("encoder")
    return load(EncoderConfig, path)


def _vit(made: Stage) -> ViTShape:
    return (made.config.openvision3 or made.config.clip).encoder


def _num_tokens(stage: Stage) -> int:
    """Tokens that the encoder of a stage gives a picture."""
    made = _made(stage)
    if made is not None:
        return _vit(made).grid ** 2
    return blind_side(_config_of(stage).image_size or 64) ** 2


def _encode(stage: Stage) -> float:
    """Of a picture by the frozen encoder; nothing where it is blind."""
    made = _made(stage)
    if made is None:
        return 0.0
    shape, vae = _vit(made), above(made, "encoder.train_vae")
    latents = 0.0 if vae is None else vae_flops(vae.config.shape, _side(vae, shape))[0]
    return FP32 * (encoder_flops(shape) + latents)


def _side(vae: Stage, tower: ViTShape) -> int:
    """Pixels on a side of the pictures that the tower sees through this VAE."""
    return vae.config.shape.downsample * tower.image_size


def _decode(stage: Stage) -> float:
    """Of a picture, from its tokens."""
    made, tokens = _made(stage), _num_tokens(stage)
    if made.config.openvision3 is not None:
        towers, vae = made.config.openvision3, above(made, "encoder.train_vae")
        pixels = 0.0 if vae is None else vae_flops(vae.config.shape, _side(vae, towers.encoder))[1]
        return FP32 * (decoder_flops(towers.decoder, tokens) + pixels)
    decoder = _needed(stage, "rae_bridge.train_decoder").config
    return FP32 * pixel_decoder_flops(decoder.size, tokens, _vit(made).width)


def _train_encoder(stage: Stage) -> float:
    config, vae = stage.config, above(stage, "encoder.train_vae")
    towers = config.openvision3 or config.clip
    each, once = sample_flops(config), 0.0
    if vae is not None:
        each = sample_flops(config, vae.config.shape)
        latents = FP32 * vae_flops(vae.config.shape, _side(vae, towers.encoder))[0]
        once = latents * min(config.train_limit or _scenes(stage).num_train, _scenes(stage).num_train)
    again = 0.0  # features first, without a graph: encoder.training.step.contrast_by_micro_batches
    if config.micro_batch is not None and config.micro_batch < config.batch_size:
        passes = 2 if config.contrastive_texts == "alt_and_sentence" else 1
        again = encoder_flops(towers.encoder) + passes * text_flops(towers.text, towers.encoder.embed_dim)
    return config.num_steps * config.batch_size * (sum(each.values()) + again) + once


def _train_vae(stage: Stage) -> float:
    config = stage.config
    each = sum(vae_flops(config.shape, _scenes(stage).image_size))
    return 3 * config.num_steps * config.batch_size * each


def _train_decoder(stage: Stage) -> float:
    config, width = stage.config, _vit(_made(stage)).width
    each = 3 * pixel_decoder_flops(config.size, _num_tokens(stage), width)
    num_pictures = min(config.train_limit or _scenes(stage).num_train, _scenes(stage).num_train)
    return config.num_steps * config.batch_size * each + num_pictures * _encode(stage)


def _train_llm(stage: Stage) -> float:
    config, num_cells = stage.config, _scenes(stage).layout_grid ** 2
    texts = [CONVERSATION if phase.topics is None else LESSON for phase in config.phases]
    return 3 * sum(
        phase.num_steps * phase.batch_size * llama_flops(config.shape, num_cells + text)
        for phase, text in zip(config.phases, texts, strict=True)
    )


def _tokens(stage: Stage) -> float:
    scenes = _scenes(stage)
    return _encode(stage) * (scenes.num_llava_images if stage.config.records else scenes.num_train)


def _train_llava(stage: Stage) -> float:
    config, shape = stage.config, _needed(stage, "llava_bridge.train_llm").config.shape
    each = llama_flops(shape, _num_tokens(stage) + STAGE_TEXT[config.stage])
    passes = 2 if config.stage == 1 else 3  # a frozen language model has no weight gradients
    return passes * each * config.num_epochs * _scenes(stage).num_llava_images


def _evaluate_llava(stage: Stage) -> float:
    scenes, trained = _scenes(stage), _needed(stage, "llava_bridge.train")
    shape = _needed(stage, "llava_bridge.train_llm").config.shape
    seed, pope = NUM_DIMENSIONS * scenes.num_seed_questions, 2 * NUM_SETTINGS * scenes.num_pope_pairs
    return (seed + pope) * (llama_flops(shape, _num_tokens(trained) + QUESTION) + _encode(trained))


def _train_dit(stage: Stage) -> float:
    config = stage.config
    return 3 * config.num_steps * config.batch_size * _dit(stage, config)


def _generate(stage: Stage) -> float:
    config, dit = stage.config, _dit(stage, _needed(stage, "rae_bridge.train").config)
    return config.num_samples * (config.num_steps * dit + _decode(stage))


def _dit(stage: Stage, config: TrainDiTConfig) -> float:
    return dit_flops(config.size, _num_tokens(stage), _vit(_made(stage)).width)


def _reconstruct(stage: Stage) -> float:
    return stage.config.limit * (_encode(stage) + _decode(stage))


_COUNTS: dict[str, Callable[[Stage], float]] = {
    "encoder.train": _train_encoder,
    "encoder.train_vae": _train_vae,
    "encoder.tokens": _tokens,
    "llava_bridge.evaluate": _evaluate_llava,
    "llava_bridge.train": _train_llava,
    "llava_bridge.train_llm": _train_llm,
    "rae_bridge.generate": _generate,
    "rae_bridge.reconstruct": _reconstruct,
    "rae_bridge.train": _train_dit,
    "rae_bridge.train_decoder": _train_decoder,
}
