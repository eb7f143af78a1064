"""The 2015 Inception network of FID, sFID and IS. Letters: N pictures."""

import io

import torch
from einops import rearrange
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from encoder.metrics import weights
from encoder.metrics.seen import Seen

_MAPS = 7  # of the 192 maps of mixed_6's first branch, as ADM takes them: 17 x 17 x 7 = 2023


class Inception(nn.Module):
    """torch-fidelity's port of the 2015 TensorFlow graph, with its TF1 resize to 299 px.

    Source: torch-fidelity 0.4.0; sFID's features as ADM's evaluator takes them (openai/guided-diffusion,
    evaluations/evaluator.py, "mixed_6/conv:0", places before maps). Deviation: torch-fidelity unpickles its
    weights file; here tensors are read first and only they are handed over.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        buffer = io.BytesIO()  # what its constructor unpickles is what we wrote ourselves
        torch.save(state, buffer)
        buffer.seek(0)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
        )
        self._maps: list[Tensor] = []
        branch = self.network.Mixed_6d.branch1x1
        branch.register_forward_hook(lambda _module, _inputs, output: self._maps.append(output))

    @classmethod
    def load(cls, given: str | None) -> "Inception":
        """From a file (a path, None: torch.hub's place, or `download`).

        Raises:
            FileNotFoundError, ValueError: it is not there, damaged, unsafe or of another network.
        """
        state = weights.read(weights.INCEPTION, given)
        try:
            return cls(state)
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[1:2])[:200]
            path = weights.find(weights.INCEPTION, given)
            raise ValueError(f"{path} is not the 2015 Inception: {reason}") from None

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Seen:
        """See pictures (N 3 H W, uint8)."""
        self._maps.clear()
        pooled, logits = self.network(pictures)
        maps = self._maps.pop()
        spatial = rearrange(maps[:, :_MAPS], "n c h w -> n (h w c)")
        return Seen(pooled=pooled, logits=logits, spatial=spatial)
