"""A grid of pictures: a row for each class, or for each text of a model that is told texts."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from rae_bridge.codec import Codec
from rae_bridge.config import GenerateConfig
from rae_bridge.generate import TrainedFlow, inner_noise_of_samples, noise_of_samples, pictures_from_noise
from rae_bridge.sample import Guidance


def draw_classes(
    flow: TrainedFlow,
    codec: Codec,
    config: GenerateConfig,
    classes: Sequence[int],
    columns: int,
    guidance: Guidance | None,
) -> Tensor:
    """uint8 (H W 3): a row of `columns` pictures for each of `classes`."""
    y = torch.tensor(classes).repeat_interleave(columns)
    noise = noise_of_samples(config.seed, range(len(y)), flow.latent_shape)
    inner = inner_noise_of_samples(flow, config.seed, range(len(y)), config.num_steps)
    images = pictures_from_noise(flow, codec, noise, y, config, guidance, inner)
    return rearrange(images, "(row column) h w c -> (row h) (column w) c", column=columns)
