"""RAE's recipes against the published protocol: values as its code has them, sizes counted."""

import math

import pytest
import torch

from encoder.load import encoder_config
from encoder.runtime.config import ROOT, load
from encoder.training.optim import rate_factor
from rae_bridge.config import DIT_SIZES, GenerateConfig, TrainDecoderConfig, TrainDiTConfig
from rae_bridge.decoder import PixelDecoder
from rae_bridge.dit import build_dit
from rae_bridge.flow import training_shift
from rae_bridge.sample import time_grid
from rae_bridge.shapes import DecoderConfig, DiTConfig
from rae_bridge.train import learning_rate

STEPS_OF_512, STEPS_OF_1024 = 1_281_167 // 512, 1_281_167 // 1024  # an epoch; RAE drops what is left


def recipe(cls, name):
    return load(cls, ROOT / f"configs/recipes/{name}.yaml")


def millions(model) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def protocol_of(config) -> dict:
    """What decides the numbers of a DiT, but for its size."""
    names = ("num_classes", "batch_size", "class_dropout_prob", "prediction", "time_distribution", "shift")
    return {name: getattr(config, name) for name in (*names, "optim", "ema_decay", "precision", "pictures")}


def test_the_decoder_is_raes_first_stage():
    config = recipe(TrainDecoderConfig, "rae_decoder")
    assert config.num_steps == 16 * STEPS_OF_512 and config.batch_size == 512
    assert (config.live.crop, config.live.flip, config.image_size) == ("random", False, 256)
    assert (config.tau, config.noise, config.ema_decay, config.precision) == (0.8, "uniform", 0.9978, "fp32")
    assert config.optim.betas == (0.9, 0.95) and config.optim.weight_decay == 0
    assert config.optim.clip_norm is None
    adversarial = config.adversarial
    assert (adversarial.weight, adversarial.max_adaptive_weight, adversarial.lr) == (0.75, 1e4, 2e-4)
    assert adversarial.learns_from * config.num_steps == 6 * STEPS_OF_512
    assert adversarial.acts_from * config.num_steps == 8 * STEPS_OF_512
    # L1 in [-1, 1] is twice RAE's in [0, 1]: so is everything else
    assert (config.perceptual, config.perceptual_weight / 2, config.perceptual_from) == ("lpips", 1.0, 0.0)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    size = {f"decoder_{name}": getattr(config.size, f"decoder_{name}") for name in names}
    with torch.device("meta"):
        decoder = PixelDecoder(DecoderConfig(**size, hidden_size=768, image_size=256, patch_size=16))
    assert millions(decoder) == pytest.approx(415.4, abs=0.5)


@pytest.mark.parametrize("step", [0, 1250, 2501, 2502, 10_000, 21_267, 40_031])
def test_the_decoders_rate_rises_for_an_epoch_and_falls_to_a_tenth(step):
    """RAE's LambdaLR: (step + 1) / warm-up, then final + (1 - final) (1 + cos) / 2 of what is left."""
    config = recipe(TrainDecoderConfig, "rae_decoder")
    if step < STEPS_OF_512:
        expected = 2e-4 * (step + 1) / STEPS_OF_512
    else:
        progress = (step - STEPS_OF_512) / (15 * STEPS_OF_512)
        expected = 2e-5 + (2e-4 - 2e-5) * 0.5 * (1 + math.cos(math.pi * progress))
    rate = config.optim.lr * rate_factor(config.optim, step, config.num_steps)
    assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "size", "parameters"), [
    ("rae_dit_s", "DiTDH-S", 196.5), ("rae_dit_b", "DiTDH-B", 294.3), ("rae_dit_xl", "DiTDH-XL", 838.7),
])  # fmt: skip
def test_a_generator_is_raes_second_stage(name, size, parameters):
    config = recipe(TrainDiTConfig, name)
    assert config.size == DIT_SIZES[size]
    assert config.num_steps == 80 * STEPS_OF_1024 and config.batch_size == 1024
    assert (config.num_classes, config.class_dropout_prob, config.prediction) == (1000, 0.1, "velocity")
    assert (config.time_distribution, config.precision, config.ema_decay) == ("logit_normal", "fp32", 0.9995)
    assert config.average_decay == 0.9995  # no share of the run in its place
    optim = config.optim
    assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.95), 0.0, 1.0)
    rates = {epoch: learning_rate(optim, epoch * STEPS_OF_1024) for epoch in (0, 40, 420, 800, 1400)}
    assert rates == pytest.approx({0: 2e-4, 40: 2e-4, 420: 1.1e-4, 800: 2e-5, 1400: 2e-5})
    assert config.pictures.image_size == 256
    encoder = encoder_config(config.pictures.encoder)
    assert encoder.source == "clip:facebook/dinov2-with-registers-base" and encoder.image_size == 224
    assert encoder.features.generation == "last_norm"  # the final norm without its gain
    with torch.device("meta"):
        model = build_dit(DiTConfig(**dict_of(config.size), input_size=16, in_channels=768))
    assert millions(model) == pytest.approx(parameters, abs=0.05)
    assert config.shift is None and training_shift(768 * 16 * 16) == pytest.approx(6.9282, abs=1e-4)


def dict_of(size) -> dict:
    return {name: getattr(size, name) for name in ("hidden_size", "depth", "num_heads", "mlp_ratio")}


def test_the_three_sizes_differ_in_nothing_else():
    small, base, large = (recipe(TrainDiTConfig, f"rae_dit_{letter}") for letter in ("s", "b", "xl"))
    assert protocol_of(small) == protocol_of(base) == protocol_of(large)


@pytest.mark.parametrize("name", ["rae_sample", "rae_sample_guided"])
def test_samples_are_drawn_as_rae_draws_them(name):
    config = recipe(GenerateConfig, name)
    assert (config.num_samples, config.num_steps, config.solver) == (50_000, 49, "euler")
    assert (config.end, config.rounding, config.precision) == ("rae", "truncate", "fp32")
    assert config.image_size == 256
    times = time_grid(config.num_steps, training_shift(768 * 16 * 16), config.end)
    assert len(times) == 50 and times[0] == 1 and times[-1] == pytest.approx(0.00689, abs=1e-5)
    if config.guidance is not None:
        assert (config.guidance.kind, config.guidance.scale) == ("autoguidance", 1.42)
        assert config.guidance.interval == (0.0, 1.0)
        assert config.guidance.model == f"runs/rae/dit_s/kept/step_{14 * STEPS_OF_1024:08}"
        assert 14 * STEPS_OF_1024 in recipe(TrainDiTConfig, "rae_dit_s").keep_steps
    else:
        assert name == "rae_sample"
