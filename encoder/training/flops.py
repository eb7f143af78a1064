"""What a training step costs, from shapes alone: parameters, FLOPs, memory. No torch.

A FLOP is a multiplication or an addition of a matrix product or convolution; norms, activations and softmax
are left out. A backward pass costs twice the forward one where weights learn, once through frozen networks.
What checkpointing and micro-batches compute again is not counted, as in model FLOPs utilisation
(arXiv:2204.02311).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from encoder.models.shapes import DecoderShape, OpenVision3Shape, TextShape, VaeShape, ViTShape
from encoder.training.options import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

FLUX_VAE = VaeShape(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
BERT_VOCABULARY = 30_522  # lines of bert-base-uncased's vocab.txt
VGG16_FLOPS = 2 * 15.35e9 / 224**2  # of the convolutions, a pixel: LPIPS' trunk
# Dense bf16 FLOP/s by the vendor's data sheets; the name is a part of torch.cuda.get_device_name()
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def transformer_flops(tokens: int, width: int, layers: int, mlp_width: int | None = None) -> float:
    """Forward FLOPs of a stack of blocks over `tokens` tokens; attention as if nothing were masked."""
    weights = 4 * width**2 + 2 * width * (mlp_width or 4 * width)
    return layers * 2.0 * tokens * (weights + 2 * tokens * width)


def transformer_parameters(width: int, layers: int, mlp_width: int | None = None) -> int:
    hidden = mlp_width or 4 * width
    return layers * (4 * width**2 + 2 * width * hidden + 9 * width + hidden)


def encoder_flops(shape: ViTShape) -> float:
    """Forward FLOPs of a picture: patches, blocks (with the class token), pooled projection."""
    tokens, patch = shape.grid**2, shape.in_channels * shape.patch_size**2
    blocks = transformer_flops(tokens + 1, shape.width, shape.layers, shape.mlp_width)
    return 2.0 * tokens * patch * shape.width + blocks + 2 * shape.width * shape.embed_dim


def decoder_flops(shape: DecoderShape, tokens: int) -> float:
    ends = shape.in_width + shape.patch_size**2 * shape.out_channels
    return 2.0 * tokens * ends * shape.width + transformer_flops(tokens, shape.width, shape.layers)


def text_flops(shape: TextShape, embed_dim: int) -> float:
    """Forward FLOPs of one text."""
    blocks = transformer_flops(shape.context_length, shape.width, shape.layers)
    return blocks + 2 * shape.width * embed_dim


def captioner_flops(towers: OpenVision3Shape, vocab_size: int) -> float:
    shape, image = towers.captioner, towers.encoder.grid**2
    words = shape.context_length
    prefix, projected = image, 2.0 * image * towers.encoder.width * shape.width
    if shape.kind == "parallel":
        alt_text = towers.text.context_length - 1
        prefix, projected = image + alt_text, projected + 2.0 * alt_text * towers.text.width * shape.width
    else:
        words -= 1
    blocks = transformer_flops(prefix + words, shape.width, shape.layers)
    return projected + blocks + 2.0 * words * shape.width * vocab_size


def vae_flops(shape: VaeShape, side: int) -> tuple[float, float]:
    """Forward FLOPs of encoding, and of decoding, a picture of `side` px."""
    widths, latent = shape.block_out_channels, shape.latent_channels

    def resnet(size: int, c_in: int, c_out: int) -> float:
        shortcut = c_in * c_out if c_in != c_out else 0
        return 2.0 * size**2 * (9 * c_in * c_out + 9 * c_out**2 + shortcut)

    size, previous, down = side, widths[0], 2.0 * side**2 * 9 * 3 * widths[0]
    for index, width in enumerate(widths):
        for layer in range(shape.layers_per_block):
            down += resnet(size, previous if layer == 0 else width, width)
        if index + 1 < len(widths):
            size //= 2
            down += 2.0 * size**2 * 9 * width**2
        previous = width
    tokens, top = size**2, widths[-1]
    middle = 2 * resnet(size, top, top) + 2.0 * tokens * (4 * top**2 + 2 * tokens * top)
    down += middle + 2.0 * tokens * 9 * top * 2 * latent
    up, previous = middle + 2.0 * tokens * 9 * latent * top, top
    for index, width in enumerate(reversed(widths)):
        for layer in range(shape.layers_per_block + 1):
            up += resnet(size, previous if layer == 0 else width, width)
        if index + 1 < len(widths):
            size *= 2
            up += 2.0 * size**2 * 9 * width**2
        previous = width
    return down, up + 2.0 * size**2 * 9 * widths[0] * 3


def vocabulary_size(source: str) -> int:
    """Entries of the tokenizer's vocabulary; a BERT vocabulary is taken to be bert-base-uncased's."""
    if source != "scenes":
        return BERT_VOCABULARY
    from encoder.data.scenes.text import VOCABULARY

    return len(VOCABULARY) + 5  # and the special entries


def sample_flops(config: TrainConfig, vae: VaeShape = FLUX_VAE) -> dict[str, float]:
    """FLOPs of training on one sample, by part. Longest captions are assumed."""
    passes = 2 if config.contrastive_texts == "alt_and_sentence" else 1
    towers = config.openvision3 or config.clip
    parts = {
        "encoder": 3 * encoder_flops(towers.encoder),
        "text encoder": 3 * passes * text_flops(towers.text, towers.encoder.embed_dim),
    }
    if config.openvision3 is None:
        return parts
    tokens = towers.encoder.grid**2
    downsample = 1 if config.vae == "pixels" else vae.downsample
    side = downsample * towers.encoder.image_size
    cropped = side if config.pixel_crop is None else min(side, downsample * config.pixel_crop)
    parts["decoder"] = 3 * decoder_flops(towers.decoder, tokens)
    parts["captioner"] = 3 * captioner_flops(towers, vocabulary_size(towers.text.tokenizer))
    if config.decoder_only:
        parts |= {"encoder": parts["encoder"] / 3, "text encoder": 0.0, "captioner": 0.0}
    if config.vae != "pixels":
        is_cached = config.stream is None or config.stream.latents
        parts["VAE encoding"] = 0.0 if is_cached else vae_flops(vae, side)[0]
        parts["VAE decoding"] = 2 * config.pixel_fraction * vae_flops(vae, cropped)[1]
    if config.perceptual == "lpips" and config.objective.perceptual_weight:
        active = config.pixel_fraction * (1 - config.perceptual_from)
        parts["perceptual"] = 3 * active * VGG16_FLOPS * cropped**2
    return parts


def num_parameters(config: TrainConfig) -> dict[str, int]:
    """Parameters that learn, by tower."""
    towers = config.openvision3 or config.clip
    vit, text = towers.encoder, towers.text
    vocab = vocabulary_size(text.tokenizer)
    patch = vit.in_channels * vit.patch_size**2
    stack = transformer_parameters(vit.width, vit.layers, vit.mlp_width)
    counts = {
        "encoder": stack + vit.width * (patch + vit.embed_dim + 3),
        "text encoder": transformer_parameters(text.width, text.layers)
        + text.width * (vocab + text.context_length + 2 + vit.embed_dim),
        "temperature": 1,
    }
    if config.openvision3 is None:
        return counts
    decoder, words = towers.decoder, towers.captioner
    out = decoder.patch_size**2 * decoder.out_channels
    stack = transformer_parameters(decoder.width, decoder.layers)
    counts["decoder"] = stack + decoder.width * (decoder.in_width + 3 + out) + out
    read = vocab if words.kind == "autoregressive" else text.width  # words, or the alt text's tokens
    counts["captioner"] = transformer_parameters(words.width, words.layers) + words.width * (
        vit.width + read + words.context_length + 2 + vocab
    )
    return counts


def memory_bytes(config: TrainConfig, num_processes: int, vae: VaeShape = FLUX_VAE) -> dict[str, float]:
    """A rough estimate of a process's memory. Weights, gradients and Adam's two moments in fp32; of each
    block 34 bytes a token and channel in bf16 (arXiv:2205.05198, fused attention), or 2 where checkpointed;
    6 bytes for each value between the VAE decoder's convolutions."""
    towers = config.openvision3 or config.clip
    rows = config.micro_batch or max(1, config.batch_size // num_processes)
    copies = 4 + (config.ema_decay is not None)
    state = 4.0 * copies * sum(num_parameters(config).values())
    tokens = towers.encoder.grid**2
    stacks = [(tokens, towers.encoder.width, towers.encoder.layers)]
    passes = 2 if config.contrastive_texts == "alt_and_sentence" else 1
    stacks += [(passes * towers.text.context_length, towers.text.width, towers.text.layers)]
    pixels = 0.0
    if config.openvision3 is not None:
        words = towers.captioner
        stacks += [(tokens, towers.decoder.width, towers.decoder.layers)]
        stacks += [(tokens + words.context_length, words.width, words.layers)]
        side = vae.downsample * min(towers.encoder.image_size, config.pixel_crop or towers.encoder.image_size)
        widths = reversed(vae.block_out_channels)
        sizes = [
            side // 2 ** (len(vae.block_out_channels) - 1 - i) for i in range(len(vae.block_out_channels))
        ]
        values = sum(6 * (vae.layers_per_block + 1) * c * s**2 for c, s in zip(widths, sizes, strict=True))
        pixels = 6.0 * values * max(1, round(config.pixel_fraction * rows))
    each = 2 if config.activation_checkpointing else 34
    width = 2.0 if config.precision == "fp32" else 1.0
    activations = width * rows * sum(n * d * (each * layers + 34) for n, d, layers in stacks)
    shards = num_processes if config.sharding == "fsdp2" else 1
    return {"weights and optimiser": state / shards, "towers": activations, "VAE decoding": pixels}


def model_flops_utilisation(
    config: TrainConfig, rate: float, accelerator: Accelerator, vae: VaeShape | None
) -> dict[str, float]:
    """{"mfu": the fraction of the GPUs' peak that `rate` samples a second use}; empty on a device without a
    known peak. `vae`: the VAE's shape, where there is one."""
    if accelerator.device.type != "cuda":
        return {}
    import torch

    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    if peak is None:
        return {}
    return {
        "mfu": rate * sum(sample_flops(config, vae or FLUX_VAE).values()) / (peak * accelerator.num_processes)
    }
