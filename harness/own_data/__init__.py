"""The users' own pictures and captions, packed as Scenes' are, and whether there are enough of them.
Imports `encoder` alone. `python -m harness.own_data <config.yaml> <out_dir>` is the stage that packs.
"""

from harness.own_data.listing import list_source
from harness.own_data.pack import OwnDataConfig, run

__all__ = ["OwnDataConfig", "list_source", "run"]
