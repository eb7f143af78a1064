"""What a perfect generator would get: real tokens, decoded and scored as if they had been generated."""

from harness.config import stage_config
from harness.encoders import Encoder
from harness.running.stages import Stage
from harness.suites.request import Request
from harness.suites.scoring import Tokens, add_score, add_stage
from harness.suites.shared import Pictures, add_tokens
from harness.tables.result_files import Part
from rae_bridge.config import DecodeConfig

RECONSTRUCTIONS, DECODED = "reconstructions.npz", "decoded.npz"
CEILING = "decoded real tokens"
_SOURCE = "tokens of real pictures that nobody compares with, decoded"
_REASON = "these are other pictures than those that are reconstructed: see the row of the encoder"
_PUBLISHED_SOURCE = "the reconstructions, scored like samples"
_PUBLISHED_REASON = "these are the reconstructions themselves: see the row of the encoder"


def ceiling_says(reference: Stage) -> tuple[str, str]:
    """What a ceiling's pictures are, and why it has no numbers of reconstructions."""
    if reference.config.statistics is not None:
        return _PUBLISHED_SOURCE, _PUBLISHED_REASON
    return _SOURCE, _REASON


def add_ceiling(
    request: Request,
    encoder: Encoder,
    pictures: Pictures,
    reference: Stage,
    reconstructed: Stage | None = None,
) -> tuple[Stage, str, Part]:
    """What a perfect generator would get: real tokens of pictures that the reference has not, decoded and
    scored as if they had been generated. Returns the stage, its file of pictures, and the scores.

    They are those of the second real set; against published statistics, which are of other pictures anyway,
    the reconstructions serve.
    """
    if reconstructed is not None and reference.config.statistics is not None:
        part = add_score(
            request, encoder, reference, "generation", reconstructed, RECONSTRUCTIONS,
            checkpoint=encoder.checkpoint, what=CEILING,
        )  # fmt: skip
        return reconstructed, RECONSTRUCTIONS, part
    num = reference.config.num_samples
    tokens = add_tokens(request, encoder, reference.config.split, pictures.made_by, limit=2 * num)
    section = request.preset.rae.reconstruct
    config = stage_config(
        DecodeConfig,
        {name: section[name] for name in ("image_size", "rounding") if name in section},
        "rae.reconstruct",
        encoder=encoder.word,
        tokens=str(tokens.folder),
        first=num,
        limit=num,
        device=request.device,
    )
    stage = add_stage(request, encoder, "decode", config, "decode real tokens", [tokens])
    real = add_tokens(request, encoder, "train", pictures.made_by)
    kept = Tokens(folder=tokens.folder, first=num, made_by=tokens, real=real)
    files = {"checkpoint": encoder.checkpoint, "tokens": kept, "what": CEILING}
    return stage, DECODED, add_score(request, encoder, reference, "generation", stage, DECODED, **files)
