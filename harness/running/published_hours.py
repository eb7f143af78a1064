"""What others print that a stage took, for `--plan`. No torch."""

from harness.running.stages import Stage

# GPU-hours that others print for the same stage: LLaVA-1.5's README, 7B on 8 A100 with 576 image tokens
# (3.5 h and 10 h); RAE's issue #50, 50,000 samples on one H800
PUBLISHED_HOURS = {"llava_align": 28.0, "llava_instruct": 80.0, "rae_generate": 7.0}
FEWEST_STEPS = 49  # of samples that took those hours


def published_hours(stage: Stage) -> float | None:
    """GPU-hours that others print for the same stage; None for one without, and for samples of few steps."""
    if stage.name == "rae_generate" and stage.config.num_steps < FEWEST_STEPS:
        return None
    return PUBLISHED_HOURS.get(stage.name)
