"""CLIPScore of pictures and prompts, by a CLIP in the hub's layout, beside transformers' own logits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from harness.replica import clip
from harness.replica.config import ReplicaConfig
from harness.scene_eval.clip_score import clip_scores, run
from harness.scene_eval.config import ClipScoreConfig

PROMPTS = ["a red cup", "two fish above a very green tree at the beach", "a sign says stop"]
LABELS = [0, 0, 1, 2, 2, 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two CLIPs of random weights, one in each of the hub's formats; prompts; pictures of them."""
    folder = tmp_path_factory.mktemp("clips")
    clip.write(folder, ReplicaConfig(seed=2))
    lines = [json.dumps({"prompt": each}) for each in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    pictures = np.random.default_rng(0).integers(0, 256, (len(LABELS), 64, 64, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", arr_0=pictures, labels=np.array(LABELS))
    return folder


def config(world, name, **changes):
    files = {"pictures": str(world / "pictures.npz"), "prompts": str(world / "prompts.jsonl")}
    return ClipScoreConfig(**{"clip": str(world / name), "batch_size": 4, **files, **changes})


def test_the_score_is_the_papers():
    torch.testing.assert_close(clip_scores(torch.tensor([0.3, -0.2])), torch.tensor([0.75, 0.0]))


@pytest.mark.parametrize("name", clip.MODELS)
def test_each_picture_meets_its_own_prompt(world, tmp_path, name):
    metric = run(config(world, name), tmp_path)["metrics"]["CLIPScore"]
    model, folder = CLIPModel.from_pretrained(world / name).eval(), world / name
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = []
    for picture, label in zip(np.load(world / "pictures.npz")["arr_0"], LABELS, strict=True):
        seen = processor(images=Image.fromarray(picture), return_tensors="pt")
        with torch.no_grad():  # one at a time, so without padding
            output = model(**seen, **tokenizer(PROMPTS[label], return_tensors="pt"))
        scores.append(2.5 * max(0.0, (output.logits_per_image / model.logit_scale.exp()).item()))
    assert metric["value"] == pytest.approx(np.mean(scores), abs=1e-5)
    by_prompt = [
        np.mean([score for score, at in zip(scores, LABELS, strict=True) if at == i]) for i in range(3)
    ]
    assert metric["stderr"] == pytest.approx(np.std(by_prompt, ddof=1) / 3**0.5, abs=1e-5)
    assert metric["num_samples"] == len(LABELS) and metric["judge"].startswith(f"{name} sha256:")


def test_what_is_missing_is_said(world, tmp_path):
    name = next(iter(clip.MODELS))
    with pytest.raises(FileNotFoundError, match=r"no CLIP in .* \(model.safetensors or pytorch_model.bin\)"):
        run(config(world, name, clip=str(tmp_path)), tmp_path)
    np.savez(tmp_path / "others.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8), labels=np.array([3]))
    with pytest.raises(ValueError, match="must name the prompts of its pictures, 0 to 2"):
        run(config(world, name, pictures=str(tmp_path / "others.npz")), tmp_path)
