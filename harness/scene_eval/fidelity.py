"""Stage: how far pictures of captions are from the captions' own pictures, by the judges of generation.

`python -m harness.scene_eval.fidelity <config.yaml> <out_dir>`; the result is {"metrics": {tFD-lite0: ...,
tKID-lite0: ...}} (tFID and tKID with the 2015 Inception). COCO-30k's FID is this of 30,000 captions of
val2014 against their pictures, cut to 256 px.
"""

from pathlib import Path

from encoder.runtime.config import ROOT
from encoder.runtime.stage import main
from harness.metrics.config import Judge, ScoreConfig
from harness.metrics.reference import read_reference
from harness.metrics.score import scores
from harness.scene_eval.config import FIDELITY, FidelityConfig


def run(config: FidelityConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring.

    Raises:
        ValueError: there are not as many pictures as the reference has.
    """
    reference, judge = read_reference(ROOT / config.reference)
    score = ScoreConfig(
        kind="generation", pictures=str(ROOT / config.pictures), reference=str(ROOT / config.reference),
        kernel_subset_size=config.kernel_subset_size, device=config.device, batch_size=config.batch_size,
    )  # fmt: skip
    found = scores(score, reference, judge, out_dir)
    return {"metrics": {ours: found[name] for name, ours in names_of(judge).items() if name in found}}


def names_of(judge: Judge) -> dict[str, str]:
    """Of the generation suite's keys, those that are kept, and what they are called here."""
    return {judge.key(name): judge.key(ours) for name, ours in FIDELITY.items()}


if __name__ == "__main__":
    main(FidelityConfig, run)
