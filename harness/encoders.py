"""Which encoder a word of the command line means, and the files that its tokens depend on. No torch here."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Literal

from encoder.blind import BLIND
from encoder.models.shapes import SHIFTED
from encoder.options import EncoderConfig
from encoder.runtime import hub
from encoder.runtime.config import ROOT, ConfigError, choose, load, nearest
from harness.running.sources import own_files
from harness.running.stages import Stage

CONFIGS = ROOT / "configs" / "encoders"
SCHEMES = ("clip", "module", "timm", "vae")  # what `load_encoder` takes besides names, folders and hub ids
_FOLDER_CONFIGS = ("config.json", "open_clip_config.json")  # by save_pretrained, or a release


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A row's encoder; `name` is its id in the tables."""

    name: str
    word: str  # what the stages hand to `load_encoder`
    config: EncoderConfig
    files: tuple[Path, ...]  # configs, weights and code whose content is part of its stages' fingerprints
    stages: tuple[Stage, ...] = ()  # those that make it, where it is not there from the start

    @property
    def checkpoint(self) -> tuple[Path, ...]:
        """What is scored with it: its files, or the weights that its first stage writes."""
        return self.files or tuple(stage.folder / "weights" for stage in self.stages[:1])

    @property
    def is_blind(self) -> bool:
        return self.config.source == BLIND

    def source(self, bridge: Literal["understanding", "generation"]) -> str:
        """Where the tokens come from and which of them the bridge sees, as every result says it."""
        features = getattr(self.config.features, bridge)
        return f"{self.config.source}, features: {features or 'default'}"


def encoder_configs() -> dict[str, Path]:
    """The files under `configs/encoders` by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def resolve_encoder(word: str) -> Encoder:
    """A name under `configs/encoders`, or whatever else `load_encoder` takes.

    Raises:
        ConfigError: it can be none of these (names the nearest).
        FileNotFoundError: a folder that its config names is not there.
    """
    names = encoder_configs()
    if word in names:
        config = load(EncoderConfig, names[word])
        return Encoder(name=word, word=word, config=config, files=(names[word], *files_of(config)))
    if word.endswith(".yaml") and Path(word).is_file():
        config, path = load(EncoderConfig, word), Path(word).resolve()
        return Encoder(name=config.name, word=str(path), config=config, files=(path, *files_of(config)))
    given, word = word, _pinned(word)
    config = EncoderConfig(name=given, source=word)
    scheme, colon, _ = word.partition(":")
    if colon and not Path(word).exists():
        choose(dict.fromkeys(SCHEMES), scheme, "kind of encoder")
    elif (folder := _folder(word)) and not any((folder / name).is_file() for name in _FOLDER_CONFIGS):
        raise ConfigError(f"{word} is no encoder's folder: it holds neither {' nor '.join(_FOLDER_CONFIGS)}")
    elif not folder and not hub.is_hub_id(word):
        kinds = ", ".join(f"{kind}:..." for kind in SCHEMES)
        raise ConfigError(
            f"unknown encoder '{word}'{nearest(word, names)}; names: {', '.join(names)}; "
            f"or a folder, a YAML file like theirs, a hub id, {kinds}"
        )
    return Encoder(name=given, word=word, config=config, files=files_of(config))


def files_of(config: EncoderConfig) -> tuple[Path, ...]:
    """Weights folders, those of hub ids in the hub's cache too, and module files that an encoder is made of;
    timm's names stand for themselves.

    Raises:
        FileNotFoundError: a folder is not there, or a repository not in the cache.
    """
    scheme, _, rest = config.source.partition(":")
    if scheme == "module":
        return tuple(dict.fromkeys([_module_path(rest), *own_files(rest.partition(":")[0])]))
    places = [rest if scheme in SCHEMES else config.source, config.vae, config.decoder]
    files = []
    for place in (each.removesuffix(SHIFTED) for each in filter(None, places)):
        if folder := _folder(place):
            files.append(folder)
        elif hub.is_hub_id(place):
            files.append(hub.find(place))
        elif place not in ("own", "pixels", "train") and scheme not in SCHEMES:
            raise FileNotFoundError(f"encoder {config.name}: weights folder not found: {place}")
    return tuple(dict.fromkeys(files))


def _folder(place: str) -> Path | None:
    return next((path for path in (Path(place).resolve(), ROOT / place) if path.is_dir()), None)


def _pinned(word: str) -> str:
    """The word with the commit that its hub id, if it is one, means today: so that every stage loads this one
    and its fingerprint says so."""
    scheme, colon, rest = word.partition(":")
    if colon and scheme in ("clip", "timm", "vae"):
        return f"{scheme}:{hub.pinned(rest.removesuffix(SHIFTED))}{SHIFTED if rest.endswith(SHIFTED) else ''}"
    return word if colon else hub.pinned(word)


def _module_path(source: str) -> Path:
    """The file of `package.module:Class`, found without running it."""
    module, _, class_name = source.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not class_name:
        raise ConfigError(f"module:{source}: no such module on the path; write module:package.module:Class")
    return Path(spec.origin)
