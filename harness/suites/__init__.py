"""The suites: each turns encoders into stages of the graph and rows of the leaderboard.
Imports everything below the command line; nothing imports a suite but the command line.
"""

import dataclasses

from encoder.runtime.config import choose
from harness.suites import ablation, distillation, generation, text2image, understanding
from harness.suites.request import Request, SuitePlan

BUILDERS = {
    "understanding": understanding.plan,
    "generation": generation.plan,
    "ablation": ablation.plan,
    "distillation": distillation.plan,
    "text2image": text2image.plan,
}


def plan_suite(request: Request) -> SuitePlan:
    """Plan one suite.

    Raises:
        ConfigError: no code for this suite, or a value of the preset that a stage refuses.
    """
    plan = choose(BUILDERS, request.suite.name, "suite")(request)
    return dataclasses.replace(plan, seed=request.seed)
