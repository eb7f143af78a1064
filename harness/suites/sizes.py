"""How many pictures the generation suite asks for, against how many there are: whatever cannot fit is said
before anything runs, or as soon as one's own pictures are packed.
"""

from encoder.metrics.networks import INCEPTION, LITE0
from encoder.runtime.config import ConfigError
from harness.config import stage_config
from harness.metrics.config import ReferenceConfig, ScoreConfig, keys_of
from harness.own_data.enough import EnoughConfig, check_listing
from harness.own_data.listing import list_source
from harness.running.stages import Stage
from harness.suites.request import Request
from harness.suites.shared import num_classes

_NEIGHBOURS, _CHUNKS = 3, 10  # of precision and recall; of the Inception score
_WIDTHS = {LITE0: 1280, INCEPTION: 2048}  # of a judge's features


def add_count(request: Request, pictures: Stage, reference: ReferenceConfig) -> None:
    """With one's own pictures, a stage that counts them once they are packed, and guards them till then."""
    if request.preset.own_data:
        check = request.graph.add(
            "own_data_enough",
            "harness.own_data.enough",
            _asked(request, pictures, reference),
            label="own pictures: are there enough?",
            inputs=[pictures],
            seconds=1.0,
        )
        request.graph.guard(pictures, check)


def check_sizes(request: Request, pictures: Stage | None, reference: ReferenceConfig) -> None:
    """What is known before anything runs; of pictures that no stage makes (None), the suite's own numbers.

    Raises:
        ConfigError: too few pictures or samples, with the numbers that would fit.
    """
    _check_samples(request, reference)
    if pictures is None:
        return
    asked = _asked(request, pictures, reference)
    needed = asked.num_sets * asked.num_samples
    if not request.preset.own_data:
        held = pictures.config.num_test
        if held < needed:
            raise ConfigError(
                f"reference.num_samples={reference.num_samples} needs {needed} test pictures, but "
                f"scenes.num_test is {held}: lower it to {held // asked.num_sets}, or set "
                f"scenes.num_test={needed}"
            )
        return
    check_listing(list_source(pictures.config.source), asked, pictures.config.test_fraction)
    classes = num_classes(request)["num_classes"]
    if reference.num_samples < classes:
        raise ConfigError(
            f"reference.num_samples={reference.num_samples} is fewer than the {classes} classes: equally "
            f"many samples are drawn of each; set it to {classes} or more"
        )


def says_how_small(reference: ReferenceConfig) -> str:
    """A warning for the tables where there are fewer pictures than features; empty where there are not."""
    width = _WIDTHS.get(reference.extractor, 0)
    if reference.num_samples >= width:
        return ""
    return (
        f"; {reference.num_samples} pictures are fewer than the judge's {width} features: Frechet distances "
        "compare the rows of this table alone"
    )


def _asked(request: Request, pictures: Stage, reference: ReferenceConfig) -> EnoughConfig:
    return EnoughConfig(
        data=str(pictures.folder),
        num_samples=reference.num_samples,
        num_sets=1 if reference.statistics else 2,
        least=max(_least_samples(reference)[0], num_classes(request).get("num_classes", 1)),
    )


def _check_samples(request: Request, reference: ReferenceConfig) -> None:
    """Raises: ConfigError where a number of the suite would not be defined with so few samples."""
    num = reference.num_samples
    least, what = _least_samples(reference)
    if num < least:
        raise ConfigError(f"reference.num_samples={num}: {what} needs {least} or more")
    if not any(key.startswith("KID") for key in keys_of("generation", reference)):
        return
    score = stage_config(
        ScoreConfig, request.preset.score, "score", kind="generation", pictures="", reference=""
    )
    subsets = {"reference": reference.kernel_subset_size, "score": score.kernel_subset_size}
    for section, size in subsets.items():
        if not 2 <= size <= num:
            fits = max(2, num // 2)
            raise ConfigError(
                f"{section}.kernel_subset_size={size} must lie between 2 and reference.num_samples={num}; "
                f"these fit: reference.kernel_subset_size={fits} score.kernel_subset_size={fits}"
            )


def _least_samples(reference: ReferenceConfig) -> tuple[int, str]:
    """The fewest samples with which every number is defined, and the number that needs them."""
    if reference.extractor in _WIDTHS:  # those that give logits
        return _CHUNKS, f"the Inception score, a mean over {_CHUNKS} parts,"
    return _NEIGHBOURS + 1, f"precision and recall, which look at {_NEIGHBOURS} neighbours,"
