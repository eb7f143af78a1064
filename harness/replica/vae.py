"""FLUX.1's VAE: the folder `vae` of black-forest-labs/FLUX.1-dev, as diffusers writes it.

Source: reference sheet "Metrics, VAEs", Sec. 3: config.json value by value; four stages (8x), 16 channels,
scaling 0.3611 and shift 0.1159, without quantisation convolutions. Only widths, norm groups and the blocks of
a stage are smaller. Names of the weights: diffusers 0.42.1, `models/autoencoders/vae.py`; file:
diffusion_pytorch_model.safetensors.
"""

from collections.abc import Iterator
from pathlib import Path

from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.networks import Shape, layer, random_weights

FOLDER, VAE_WEIGHTS = "FLUX.1-dev/vae", "diffusion_pytorch_model.safetensors"
WIDTHS, CHANNELS, LAYERS, GROUPS = (8, 8, 16, 16), 16, 1, 4
SCALING, SHIFT = 0.3611, 0.1159


def write(root: Path, config: ReplicaConfig) -> str:
    """The folder, fp32."""
    from safetensors.torch import save_file

    folder = root / FOLDER
    folder.mkdir(parents=True)
    shapes = {
        name: shape for part in (_encoder(), _decoder()) for each in part for name, shape in each.items()
    }
    state = random_weights(shapes, config.seed, FOLDER)
    save_file(state, folder / VAE_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0.dev0", "act_fn": "silu",
        "block_out_channels": WIDTHS, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True, "in_channels": 3, "latent_channels": CHANNELS, "latents_mean": None,
        "latents_std": None, "layers_per_block": LAYERS, "mid_block_add_attention": True,
        "norm_num_groups": GROUPS, "out_channels": 3, "sample_size": 1024, "scaling_factor": SCALING,
        "shift_factor": SHIFT, "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False,
        "use_quant_conv": False,
    })  # fmt: skip
    (folder / README).write_text(
        readme("FLUX.1's VAE", "hub: black-forest-labs/FLUX.1-dev or FLUX.1-schnell, subfolder vae")
    )
    return f"8x, {CHANNELS} channels, scaling {SCALING}, shift {SHIFT}"


def _encoder() -> Iterator[dict[str, Shape]]:
    yield _convolution("encoder.conv_in", WIDTHS[0], 3)
    before = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        block = f"encoder.down_blocks.{stage}"
        for number in range(LAYERS):
            yield from _residual(f"{block}.resnets.{number}", width, before)
            before = width
        if stage < len(WIDTHS) - 1:
            yield _convolution(f"{block}.downsamplers.0.conv", width, width)
    yield from _middle("encoder.mid_block", WIDTHS[-1])
    yield layer("encoder.conv_norm_out", WIDTHS[-1])
    yield _convolution("encoder.conv_out", 2 * CHANNELS, WIDTHS[-1])


def _decoder() -> Iterator[dict[str, Shape]]:
    yield _convolution("decoder.conv_in", WIDTHS[-1], CHANNELS)
    before = WIDTHS[-1]
    for stage, width in enumerate(reversed(WIDTHS)):
        block = f"decoder.up_blocks.{stage}"
        for number in range(LAYERS + 1):
            yield from _residual(f"{block}.resnets.{number}", width, before)
            before = width
        if stage < len(WIDTHS) - 1:
            yield _convolution(f"{block}.upsamplers.0.conv", width, width)
    yield from _middle("decoder.mid_block", WIDTHS[-1])
    yield layer("decoder.conv_norm_out", WIDTHS[0])
    yield _convolution("decoder.conv_out", 3, WIDTHS[0])


def _middle(name: str, width: int) -> Iterator[dict[str, Shape]]:
    attention = f"{name}.attentions.0"
    yield layer(f"{attention}.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield layer(f"{attention}.{part}", width, width)
    for number in (0, 1):
        yield from _residual(f"{name}.resnets.{number}", width, width)


def _residual(name: str, width: int, before: int) -> Iterator[dict[str, Shape]]:
    yield layer(f"{name}.norm1", before)
    yield _convolution(f"{name}.conv1", width, before)
    yield layer(f"{name}.norm2", width)
    yield _convolution(f"{name}.conv2", width, width)
    if width != before:
        yield _convolution(f"{name}.conv_shortcut", width, before, 1)


def _convolution(name: str, width: int, before: int, side: int = 3) -> dict[str, Shape]:
    return layer(name, width, before, side, side)
