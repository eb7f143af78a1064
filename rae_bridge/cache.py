"""Stage: the frozen tokens of a split and of its mirror images, with their exact statistics.

`python -m rae_bridge.cache <config.yaml> <out_dir>` is `encoder.tokens` with both flips, the features that
the encoder's config names for generation, and latent_stats.pt beside the tokens.

Source: RAE encodes each picture anew at every step; both flips cached are the same data without the encoder.
"""

from pathlib import Path

from encoder.load import encoder_config
from encoder.options import TokensConfig
from encoder.runtime.ranks import Ranks
from encoder.runtime.stage import main
from encoder.tokens import write_tokens
from rae_bridge.latents import open_latents
from rae_bridge.pictures_config import CacheConfig


def run(config: CacheConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring."""
    tokens = TokensConfig(
        encoder=config.encoder,
        features=config.features or encoder_config(config.encoder).features.generation,
        data=config.data,
        split=config.split,
        flips=config.flips,
        limit=config.limit,
        dtype=config.dtype,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        device=config.device,
    )
    result = write_tokens(tokens, out_dir, has_moments=True)
    ranks = Ranks.start(config.device)
    if ranks.is_main:
        open_latents(out_dir).statistics().save(out_dir / "latent_stats.pt")
    ranks.wait()
    return result


if __name__ == "__main__":
    main(CacheConfig, run)
