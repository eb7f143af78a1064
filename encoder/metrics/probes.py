"""What can be read from frozen features: retrieval and a linear probe. Pure functions, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from encoder.metrics.checks import check_features, check_widths


def recall_at_1(image_features: Tensor, text_features: Tensor) -> tuple[float, float]:
    """Zero-shot retrieval, image to text and text to image, each in % (both N E; row i belongs to row i).

    Raises:
        ValueError: a row is not finite, or the shapes differ.
    """
    check_features(image_features, "image features")
    check_features(text_features, "text features")
    if image_features.shape != text_features.shape:
        shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        raise ValueError(f"retrieval needs one text a picture, got features of {shapes}")
    image_features = F.normalize(image_features.double(), dim=-1)
    text_features = F.normalize(text_features.double(), dim=-1)
    similarity = image_features @ text_features.T  # N N
    own = torch.arange(len(similarity))
    image_to_text = (similarity.argmax(dim=1) == own).double().mean()
    text_to_image = (similarity.argmax(dim=0) == own).double().mean()
    return 100 * image_to_text.item(), 100 * text_to_image.item()


def linear_probe(
    train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, ridge: float = 1e-2
) -> float:
    """Accuracy in % of a ridge regression on one-hot labels, fitted in closed form.

    Features N D are standardised by the training rows; `ridge` is the penalty per training row.

    Raises:
        ValueError: a row is not finite, the widths differ, or there are fewer than two training rows.
    """
    check_features(train_features, "features to fit the probe on", least=2)
    check_features(features, "features to probe")
    check_widths(train_features, features)
    train_features, features = train_features.double(), features.double()
    mean, std = train_features.mean(dim=0), train_features.std(dim=0).clamp_min(1e-8)
    train_features, features = (train_features - mean) / std, (features - mean) / std
    targets = F.one_hot(train_labels, int(train_labels.max()) + 1).double()
    gram = train_features.T @ train_features + ridge * len(train_features) * torch.eye(len(mean)).double()
    weights = torch.linalg.solve(gram, train_features.T @ (targets - targets.mean(dim=0)))  # D K
    predicted = (features @ weights + targets.mean(dim=0)).argmax(dim=1)
    return 100 * (predicted == labels).double().mean().item()
