"""Stage: train the demo's VAE (`encoder.training.train_vae`).

`python -m encoder.train_vae <config.yaml> <out_dir>`
"""

from encoder.runtime.stage import main
from encoder.training.options import TrainVaeConfig
from encoder.training.train_vae import train

if __name__ == "__main__":
    main(TrainVaeConfig, train)
