"""The suites: each turns encoders into stages and rows."""

from encoder.config import choose
from harness.suites import generation, understanding
from harness.suites.request import Request, SuitePlan

BUILDERS = {"understanding": understanding.plan, "generation": generation.plan}


def plan_suite(request: Request) -> SuitePlan:
    """Plan one suite.

    Raises:
        ConfigError: no code for this suite, or a value of the preset that a stage refuses.
    """
    return choose(BUILDERS, request.suite.name, "suite")(request)
