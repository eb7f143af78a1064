"""Stage: a frozen encoder's settings as a file that `load_encoder` reads.

`python -m harness.described <config.yaml> <out_dir>` writes out_dir/encoder.yaml. No torch here.
"""

from pathlib import Path

from encoder.options import EncoderConfig
from encoder.runtime.config import dump
from encoder.runtime.stage import main

ENCODER_FILE = "encoder.yaml"


def run(config: EncoderConfig, out_dir: Path) -> dict:
    """Write the file."""
    dump(config, out_dir / ENCODER_FILE)
    return {"source": config.source}


if __name__ == "__main__":
    main(EncoderConfig, run)
