"""Stage: the renders of SceneEval's test prompts through a frozen encoder and its decoder.

`python -m harness.scene_eval.rebuild <config.yaml> <out_dir>` writes out_dir/rebuilt.npz: what a perfect
generator of this encoder's tokens would draw, so that the judge's score of it is the ceiling of the encoder.
"""

from pathlib import Path

import numpy as np
import torch

from encoder.frozen import resize_square
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from harness.metrics.picture_sets import read_labels, read_pictures
from harness.scene_eval.config import REBUILT, RENDERS, RebuildConfig
from rae_bridge.codec import load_codec, to_images


def run(config: RebuildConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    torch.set_flush_denormal(True)
    device = str(require_device(config.device))
    codec = load_codec(config.encoder, decoder=config.decoder, device=device)
    path = ROOT / config.prompts / RENDERS
    renders, parts = read_pictures(path), []
    for start in range(0, len(renders), config.batch_size):
        batch = torch.from_numpy(np.array(renders[start : start + config.batch_size]))
        pixels = codec.reconstruct(batch, device)
        parts.append(to_images(resize_square(pixels, renders.shape[1]), "round").numpy())
        progress(out_dir, start + len(batch), len(renders), "pictures")
    np.savez(out_dir / REBUILT, arr_0=np.concatenate(parts), labels=read_labels(path))
    return {"num_pictures": len(renders)}


if __name__ == "__main__":
    main(RebuildConfig, run)
