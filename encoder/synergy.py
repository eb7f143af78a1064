"""Stage: the gradients of the branches (`encoder.training.synergy`).

`python -m encoder.synergy <config.yaml> <out_dir>`
"""

from encoder.runtime.stage import main
from encoder.training.options import SynergyConfig
from encoder.training.synergy import run

if __name__ == "__main__":
    main(SynergyConfig, run)
