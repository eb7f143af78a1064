"""Stage: the pictures that kept tokens decode to.

`python -m rae_bridge.decode <config.yaml> <out_dir>` (several processes: `accelerate launch -m
rae_bridge.decode ...`) reads tokens that `encoder.tokens` wrote and writes out_dir/decoded.npz (arr_0: uint8
M S S 3; labels M). Finished batches are kept, so an interrupted run goes on where it stopped, on any number
of processes. Real tokens of pictures that nobody compares with, decoded, are what a perfect generator would
draw: they score as well as its decoder lets any generator score.
"""

import shutil
from pathlib import Path

import torch

from encoder.frozen import resize_square
from encoder.runtime import checkpoint
from encoder.runtime.config import ROOT
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main, progress
from encoder.token_store import TokenStore
from rae_bridge.codec import check_tokens_alike, load_codec, origin_of, to_images
from rae_bridge.config import DecodeConfig
from rae_bridge.parts import IMAGES, PARTS, batches, own, path_of, write_npz

DECODED = "decoded.npz"


def run(config: DecodeConfig, out_dir: Path) -> dict:
    """Decode and write; see the module's docstring.

    Raises:
        FileNotFoundError, ValueError: no tokens, too few, or those of another encoder.
    """
    torch.set_flush_denormal(True)
    ranks = Ranks.start(config.device)
    codec = load_codec(config.encoder, decoder=config.decoder, device=ranks.device)
    store = TokenStore(ROOT / config.tokens)
    given = "the encoder gives", origin_of(codec.encoder)
    check_tokens_alike(f"the folder {config.tokens}", store.origin, *given)
    stop = len(store) if config.limit is None else config.first + config.limit
    if not config.first < stop <= len(store):
        raise ValueError(f"{config.tokens} holds {len(store)} pictures, asked for {config.first} to {stop}")
    size = config.image_size or codec.image_size

    (out_dir / PARTS).mkdir(exist_ok=True)
    if ranks.is_main:
        progress(out_dir, 0, stop - config.first, "pictures")  # marks the folder as begun with this config
    ranks.wait()
    everyone = batches(range(config.first, stop), config.batch_size)
    for indices in own(everyone, ranks):
        path = path_of(out_dir, indices)
        if not path.is_file():
            tokens = store.rows(torch.tensor(indices)).float().to(ranks.device)
            images = to_images(resize_square(codec.decode(tokens), size), config.rounding)
            checkpoint.save_tensors(path, {IMAGES: images})
        if ranks.is_main:
            progress(out_dir, indices.stop - config.first, stop - config.first, "pictures")
    ranks.wait()

    if ranks.is_main:
        paths = [path_of(out_dir, indices) for indices in everyone]
        write_npz(out_dir / DECODED, paths, store.labels[config.first : stop])
        shutil.rmtree(out_dir / PARTS)
    ranks.wait()  # no process is done before the file is
    return {"num_samples": stop - config.first, "image_size": size, "encoder": codec.encoder.name}


if __name__ == "__main__":
    main(DecodeConfig, run)
