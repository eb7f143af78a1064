"""Typed configuration: dataclasses are the schema, YAML files the values, `key=value` words the overrides.

No torch here: the command line answers `--help` and `--plan` with this module alone. Every mistake is a
`ConfigError` of one line that names the place, the value and the nearest valid key, before any work starts.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from encoder.runtime.files import replacing

ROOT = Path(__file__).resolve().parent.parent.parent  # relative paths in configs are relative to this folder
Config = TypeVar("Config")
# Keys that must be over zero, whatever config they stand in
_COUNTS = {
    "batch_size", "checkpoint_steps", "image_size", "log_steps", "max_length", "micro_batch",
    "micro_batch_size", "num_epochs", "num_samples", "num_steps",
}  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be used: what, got, expected, remedy, in one line."""


def load(
    cls: type[Config],
    source: Path | str | Mapping | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str = "config",
) -> Config:
    """Build a `cls` from a YAML file (or mapping), then from `a.b=value` words.

    Raises:
        FileNotFoundError: the YAML file does not exist.
        ConfigError: unknown key (names the nearest), missing key, wrong type, a size or number of steps of
            zero or less, or a combination that the dataclass refuses.
    """
    values: Any = {}
    if isinstance(source, Mapping):
        values = dict(source)
    elif source is not None:
        values = read_yaml(source)
        name = str(source)
    try:
        words = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        words = _onto_lists(values, words, name)
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.create(words))
        values = OmegaConf.to_container(merged, resolve=True)
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from None
    return _build(cls, values, name)


def _onto_lists(values: Any, words: Any, path: str) -> Any:
    """The words `key.0.b=value` as whole lists: `values`' own, with item 0 changed."""
    if isinstance(values, Mapping) and isinstance(words, Mapping):
        return {key: _onto_lists(values.get(key), each, f"{path}: {key}") for key, each in words.items()}
    if not (isinstance(values, list | tuple) and isinstance(words, Mapping)):
        return words
    items = list(values)
    for key, word in words.items():
        if not key.isdigit() or int(key) >= len(items):
            places = f"0 to {len(items) - 1}" if items else "none"
            raise ConfigError(f"{path}: no item '{key}' in this list; there are {places}")
        change = _onto_lists(items[int(key)], word, f"{path}.{key}")
        is_joined = isinstance(items[int(key)], Mapping) and isinstance(change, Mapping)
        old = {"item": items[int(key)]} if is_joined else {}
        merged = OmegaConf.merge(OmegaConf.create(old), OmegaConf.create({"item": change}))
        items[int(key)] = OmegaConf.to_container(merged)["item"]
    return items


def read_yaml(path: Path | str) -> dict:
    """The mapping that a YAML file holds; an empty file is an empty mapping."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config file not found: {path}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # PyYAML and OmegaConf raise many kinds; each means: this is not usable YAML
        raise ConfigError(f"{path}: not valid YAML: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    return values


def resolve(config: Any) -> Any:
    """A config as plain dicts, lists, numbers and strings: for YAML, JSON and hashing."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: resolve(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): resolve(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [resolve(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump(config: Any, path: Path) -> None:
    """Write a resolved config as YAML; `load(type(config), path)` gives an equal one."""
    with replacing(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(resolve(config))))


def choose(mapping: Mapping[str, Config], key: str, what: str) -> Config:
    """`mapping[key]`, or a `ConfigError` that names the choices and the nearest one."""
    if key not in mapping:
        choices = ", ".join(sorted(mapping))
        raise ConfigError(f"unknown {what} '{key}'{nearest(key, mapping)}; choices: {choices}")
    return mapping[key]


def nearest(key: str, valid: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for a close match, else an empty string."""
    matches = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def check_keys(cls: type, keys: Iterable[str], path: str) -> None:
    """Raises: ConfigError for a key that the dataclass `cls` has not; it names the nearest."""
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in keys:
        if key not in fields:
            valid = ", ".join(fields)
            raise ConfigError(f"{path}: unknown key '{key}'{nearest(key, fields)}; valid keys: {valid}")


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected keys of {cls.__name__}, got {values!r}")
    check_keys(cls, values, path)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    built = {
        key: _convert(hints[key], value, f"{path}: {key}" if ": " not in path else f"{path}.{key}")
        for key, value in values.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in built
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path}: missing key '{missing[0]}' of {cls.__name__}")
    for name in sorted(_COUNTS & built.keys()):
        if isinstance(built[name], int | float) and built[name] <= 0:
            raise ConfigError(f"{path}: {name} must be above 0, got {built[name]}")
    try:
        return cls(**built)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            close = nearest(value, map(str, arguments))
            raise ConfigError(f"{path}: got {value!r}{close}; choices: {choices}")
        return value
    if origin in (list, tuple):
        return _convert_sequence(origin, arguments, value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_union(arguments: tuple, value: Any, path: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    for option in options[:-1]:
        try:
            return _convert(option, value, path)
        except ConfigError:
            continue
    return _convert(options[-1], value, path)


def _convert_sequence(origin: type, arguments: tuple, value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path}: expected a list, got {value!r}; write [{value}]")
    is_fixed = origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if is_fixed and len(value) != len(arguments):
        raise ConfigError(f"{path}: expected {len(arguments)} values, got {len(value)}")
    hints = arguments if is_fixed else [arguments[0]] * len(value)
    pairs = zip(hints, value, strict=True)
    return origin(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(pairs))


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
