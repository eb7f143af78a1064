"""Stage: CLIPScore of pictures of prompts, by a CLIP from a folder.

`python -m harness.scene_eval.clip_score <config.yaml> <out_dir>`; the result is {"metrics": {CLIPScore:
...}}: 2.5 max(cosine, 0), the mean over pictures, as its paper defines it (100 cosine and plain cosine are
also printed under that name elsewhere). Never by the text tower of an encoder under test, which would
favour it.

Source: arXiv:2104.08718, Sec. 3.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress, sha256_file
from harness.metrics.config import Metric
from harness.metrics.picture_sets import read_labels, read_pictures
from harness.scene_eval.config import ClipScoreConfig
from rae_bridge.text.layouts import read_prompts

_WEIGHT = 2.5
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers looks for them


def clip_scores(cosines: torch.Tensor) -> torch.Tensor:
    """CLIPScore of each picture (N,) from the cosines of pictures and texts (N,)."""
    return _WEIGHT * cosines.clamp(min=0)


@torch.no_grad()
def run(config: ClipScoreConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring.

    Raises:
        FileNotFoundError: there is no CLIP in the folder.
        ValueError: the pictures name no prompts, or others.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder, device = ROOT / config.clip, str(require_device(config.device))
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(
            f"no CLIP in {folder} ({' or '.join(WEIGHTS)}): give a folder by transformers"
        )
    prompts = [each.text for each in read_prompts(ROOT / config.prompts)]
    pictures, labels = read_pictures(ROOT / config.pictures), read_labels(ROOT / config.pictures)
    if labels is None or not 0 <= labels.min() <= labels.max() < len(prompts):
        raise ValueError(f"{config.pictures} must name the prompts of its pictures, 0 to {len(prompts) - 1}")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    length, found = model.config.text_config.max_position_embeddings, []
    for start in range(0, len(pictures), config.batch_size):
        part = slice(start, start + config.batch_size)
        seen = processor(images=list(np.array(pictures[part])), return_tensors="pt").to(device)
        texts = [prompts[label] for label in labels[part]]
        words = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        output = model(**seen, **words.to(device))
        found.append(clip_scores(F.cosine_similarity(output.image_embeds, output.text_embeds)).cpu())
        progress(out_dir, start + len(texts), len(pictures), "pictures")
    scores = torch.cat(found).double()
    by_prompt = torch.stack(
        [scores[torch.from_numpy(np.array(labels == label))].mean() for label in np.unique(labels)]
    )
    metric = Metric(
        value=scores.mean().item(),
        stderr=(by_prompt.std() / len(by_prompt) ** 0.5).item() if len(by_prompt) > 1 else None,
        unit="",
        higher_is_better=True,
        num_samples=len(scores),
        judge=f"{folder.name} sha256:{sha256_file(weights)}",
    )
    return {"metrics": {"CLIPScore": dataclasses.asdict(metric)}}


if __name__ == "__main__":
    main(ClipScoreConfig, run)
