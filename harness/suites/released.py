"""The rows of a preset on real sources: released encoders by the paths of their weights, each suite its own.

described: encoder.yaml with those paths -> what every stage hands to `load_encoder`
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder.options import EncoderConfig
from encoder.runtime.config import ConfigError
from harness.config import stage_config
from harness.described import ENCODER_FILE
from harness.encoders import Encoder, files_of
from harness.running.stages import Graph, Stage
from harness.sections import ReleasedEncoder

_RELEASE = "open_clip_config.json"  # in a release's own folder


def add_released(
    graph: Graph, name: str, released: ReleasedEncoder, suite: str, places: Mapping[str, Path]
) -> Encoder:
    """The encoder that one suite judges under this name.

    Raises:
        ConfigError: a field that EncoderConfig has not, or no such source.
        FileNotFoundError: its weights are not there.
    """
    return describe(graph, released_config(name, released, suite, places))


def released_config(
    name: str, released: ReleasedEncoder, suite: str, places: Mapping[str, Path]
) -> EncoderConfig:
    """A row's encoder as one suite judges it, its sources' paths filled in.

    Raises:
        ConfigError: a field that EncoderConfig has not, or no such source.
    """
    section = filled(getattr(released, suite), places)
    return stage_config(EncoderConfig, section, f"released.{name}.{suite}", name=name)


def filled(section: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    """`section` with `{name}` in its texts replaced by that source's path; where `{openvision3}` is one
    release itself, and no folder of several, it stands for the release that is named.

    Raises:
        ConfigError: a text names a source that there is not.
    """
    try:
        texts = {
            key: value.format_map(places) if isinstance(value, str) else value
            for key, value in section.items()
        }
    except KeyError as error:
        raise ConfigError(f"no source {error} for {dict(section)}; there are {', '.join(places)}") from None
    release = places.get("openvision3")
    is_one = release is not None and (release / _RELEASE).is_file()
    if is_one and str(texts.get("source")).startswith(f"{release}/"):
        texts["source"] = str(release)
    return texts


def describe(graph: Graph, config: EncoderConfig, made_by: Sequence[Stage] = ()) -> Encoder:
    """An encoder by its settings alone, with the stage that writes them where `load_encoder` reads them.

    made_by: the stages whose folders the settings name.
    """
    label = f"{config.name}: where it lies{', with its decoder' if made_by else ''}"
    stage = graph.add("encoder", "harness.described", config, label=label, inputs=made_by)
    return Encoder(
        name=config.name,
        word=str(stage.folder / ENCODER_FILE),
        config=config,
        files=() if made_by else files_of(config),
        stages=(stage, *made_by),
    )
