"""What the repository promises: every config loads, the README's commands parse, the weights are small."""

import re
import shlex
from pathlib import Path

import pytest

from encoder.data.options import ScenesConfig
from encoder.options import EncoderConfig
from encoder.runtime.checkpoint import load_tensors
from encoder.runtime.config import ROOT, load, read_yaml
from encoder.training.options import TrainConfig, TrainVaeConfig
from harness.config import parse
from llava_bridge.config import TrainLlmConfig
from rae_bridge.config import TrainDecoderConfig

DEMO_WEIGHTS = ROOT / "weights" / "demo"
RECIPES = {
    "scenes": ScenesConfig,
    "vae-l1": TrainVaeConfig,
    "vae-l2": TrainVaeConfig,
    "vae": TrainVaeConfig,
    "ov3": TrainConfig,
    "clip": TrainConfig,
    "clip_decoder": TrainDecoderConfig,
    "llama-1": TrainLlmConfig,
    "llama": TrainLlmConfig,
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/weights/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    load(RECIPES[path.stem], path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/encoders/*.yaml")), ids=lambda path: path.stem)
def test_every_encoder_loads_under_its_own_name(path):
    assert load(EncoderConfig, path).name == path.stem


def test_ov3_and_clip_see_the_same_samples_in_the_same_order():
    ov3, clip = (load(TrainConfig, ROOT / f"configs/weights/{name}.yaml") for name in ("ov3", "clip"))
    for name in ("data", "num_steps", "batch_size", "optim", "contrastive_texts", "precision", "seed"):
        assert getattr(ov3, name) == getattr(clip, name)
    assert (ov3.openvision3.encoder.width, ov3.openvision3.encoder.layers) == (
        clip.clip.encoder.width,
        clip.clip.encoder.layers,
    )


def test_shipped_weights_are_small_half_precision_and_carded():
    files = sorted(DEMO_WEIGHTS.rglob("*.safetensors"))
    assert [path.parent.name for path in files] == ["clip", "clip_decoder", "llama", "ov3", "vae"]
    assert sum(path.stat().st_size for path in DEMO_WEIGHTS.rglob("*") if path.is_file()) <= 40e6
    for path in files:
        tensors = [tensor for tensor in load_tensors(path).values() if tensor.is_floating_point()]
        assert {tensor.dtype.itemsize for tensor in tensors} == {2}
        card = read_yaml(path.parent / "card.yaml")
        assert {"what", "command", "training_seconds", "scores", "config"} <= set(card)


def test_every_harness_command_of_the_readme_parses():
    text = Path(ROOT / "README.md").read_text()
    lines = re.findall(r"^python harness/run\.py.*$", text, re.MULTILINE)
    assert lines
    commands = [shlex.split(line, comments=True) for line in lines]
    for words in commands:
        parse([word for word in words[2:] if not word.startswith("--") and "=" in word])
