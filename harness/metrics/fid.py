"""The FID: the Frechet distance with the 2015 Inception features; with others the extractor is part of the
name (`FD-lite0`). Its mathematics are `encoder.metrics`', which the judges of training share.
"""

from encoder.metrics.frechet import Moments, frechet_distance, moments_of
from encoder.metrics.statistics import Statistics, distance

__all__ = ["Moments", "Statistics", "distance", "frechet_distance", "moments_of"]
