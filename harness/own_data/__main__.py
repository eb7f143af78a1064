"""`python -m harness.own_data <config.yaml> <out_dir>`: see `pack`."""

from encoder.runtime.stage import main
from harness.own_data.pack import OwnDataConfig, run

main(OwnDataConfig, run)
