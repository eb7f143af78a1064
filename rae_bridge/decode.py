"""Stage: the pictures that kept tokens decode to.

`python -m rae_bridge.decode <config.yaml> <out_dir>` reads tokens that `encoder.tokens` wrote and writes
out_dir/decoded.npz (arr_0: uint8 M S S 3; labels M). Real tokens of pictures that nobody compares with,
decoded, are what a perfect generator would draw: they score as well as its decoder lets any generator score.
"""

from pathlib import Path

import torch

from encoder.frozen import resize_square
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from encoder.token_store import TokenStore
from rae_bridge.codec import load_codec, to_images
from rae_bridge.config import DecodeConfig
from rae_bridge.parts import IMAGES, PARTS, batches, path_of, write_npz

DECODED = "decoded.npz"


def run(config: DecodeConfig, out_dir: Path) -> dict:
    """Decode and write; see the module's docstring.

    Raises:
        FileNotFoundError, ValueError: no tokens, too few, or those of another encoder.
    """
    torch.set_flush_denormal(True)
    device = str(require_device(config.device))
    codec = load_codec(config.encoder, decoder=config.decoder, device=device)
    store = TokenStore(ROOT / config.tokens)
    if store.origin["fingerprint"] != codec.encoder.fingerprint:
        raise ValueError(
            f"{config.tokens} holds tokens of {store.origin['encoder']} ({store.origin['features']}), not "
            f"those that {config.encoder} gives for generation ({codec.encoder.features}); write them anew"
        )
    stop = len(store) if config.limit is None else config.first + config.limit
    if not config.first < stop <= len(store):
        raise ValueError(f"{config.tokens} holds {len(store)} pictures, asked for {config.first} to {stop}")
    size = config.image_size or codec.image_size
    (out_dir / PARTS).mkdir(exist_ok=True)
    parts = batches(range(config.first, stop), config.batch_size)
    for indices in parts:
        tokens = store.rows(torch.tensor(indices)).float().to(device)
        images = to_images(resize_square(codec.decode(tokens), size), config.rounding)
        checkpoint.save_tensors(path_of(out_dir, indices), {IMAGES: images})
        progress(out_dir, indices.stop - config.first, stop - config.first, "pictures")
    write_npz(
        out_dir / DECODED, [path_of(out_dir, indices) for indices in parts], store.labels[config.first : stop]
    )
    return {"num_samples": stop - config.first, "image_size": size, "encoder": codec.encoder.name}


if __name__ == "__main__":
    main(DecodeConfig, run)
