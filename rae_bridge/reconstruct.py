"""Stage: pictures of a split through a frozen encoder and back, for rFID, PSNR and SSIM.

`python -m rae_bridge.reconstruct <config.yaml> <out_dir>` writes out_dir/reconstructions.npz and, in the same
order, originals.npz (arr_0: uint8 M S S 3; labels M, -1 where there is none).
"""

from pathlib import Path

import numpy as np
import torch

from encoder.data.picture_set import load_pictures
from encoder.frozen import resize_square
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from rae_bridge.codec import load_codec, to_images
from rae_bridge.config import ReconstructConfig


def run(config: ReconstructConfig, out_dir: Path) -> dict:
    """Reconstruct and write; see the module's docstring."""
    torch.set_flush_denormal(True)
    device = str(require_device(config.device))
    codec = load_codec(config.encoder, decoder=config.decoder, device=device)
    size = config.image_size or codec.image_size
    originals, records = load_pictures(ROOT / config.data, config.split, config.limit, image_size=size)
    images = []
    for start in range(0, len(originals), config.batch_size):
        batch = torch.from_numpy(originals[start : start + config.batch_size])
        images.append(to_images(resize_square(codec.reconstruct(batch, device), size), config.rounding))
        progress(out_dir, start + len(batch), len(originals), "pictures")
    labels = np.array([record.get("label", -1) for record in records])
    np.savez(out_dir / "reconstructions.npz", arr_0=torch.cat(images).numpy(), labels=labels)
    np.savez(out_dir / "originals.npz", arr_0=originals, labels=labels)
    return {"num_samples": len(originals), "image_size": size, "encoder": codec.encoder.name}


if __name__ == "__main__":
    main(ReconstructConfig, run)
