"""lmms-eval's own task files: any YAML of one task, with metrics that are plain numbers, scored beside the
benchmarks that this package knows. The command line reads them too: no torch here, and lmms-eval only where
one is scored.

A number is called `<task>/<metric>`, with the filter's name behind it where the task has filters of its own,
and is shown as lmms-eval gives it: no unit, no scale.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from encoder.runtime.config import choose

_BUILDERS = ("arrow", "csv", "json", "pandas", "parquet", "text")  # of `datasets`, on files
_FUNCTION = "!function "
_NO_FILTER = "none"  # the filter's name, in lmms-eval's results, of a task without one
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class CustomTask:
    """keys: of its numbers. files: all that it is made of here: YAML, code beside it, data. modules: dotted
    names of functions' modules that lie elsewhere on Python's path. data: what `datasets` is told where the
    data are files, by whole paths; else None."""

    name: str
    file: Path
    keys: tuple[str, ...]
    files: tuple[Path, ...]
    modules: tuple[str, ...]
    data: Mapping[str, Any] | None

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be looked up for it."""
        return self.data is not None


class _Loader(yaml.SafeLoader):
    """YAML in which `!function module.name` stays a word."""


_Loader.add_constructor("!function", lambda loader, node: f"{_FUNCTION}{loader.construct_scalar(node)}")


def find_task(word: str, include_path: Path | None, root: Path) -> CustomTask:
    """The task that `word` means: the path of a YAML file, relative to `root`, or a task's name in a folder.

    Raises:
        FileNotFoundError: there is no such file, or it needs one that is not there.
        ValueError: no YAML of the folder defines the task, or the file is not one task with metrics.
    """
    if word.endswith((".yaml", ".yml")):
        return read_task(root / word)
    if include_path is None:
        raise ValueError(
            f"task '{word}' is no benchmark that is known here; give the path of its YAML file, or the "
            "folder with it as include_path"
        )
    if not include_path.is_dir():
        raise FileNotFoundError(f"include_path: no such folder: {include_path}")
    return read_task(choose(dict(_named(include_path)), word, f"task of {include_path}"))


def _named(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.yaml")):
        found = re.search(r"^task: *([\w.-]+)", path.read_text(errors="replace"), re.MULTILINE)
        if found:
            yield found[1], path


def read_task(file: Path) -> CustomTask:
    """What a YAML file defines.

    Raises:
        FileNotFoundError, ValueError: as `find_task`.
    """
    file, files, modules = file.resolve(), [], []
    values = _read(file, files, modules)
    name = values.get("task")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = f"group '{values['group']}'; name its tasks one by one" if "group" in values else repr(name)
        raise ValueError(f"{file} must define one `task` of letters, digits, dots and dashes, got {what}")
    listed = values.get("metric_list") or []
    metrics = [each.get("metric") if isinstance(each, Mapping) else None for each in listed]
    if not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise ValueError(f"{file} has no metric_list of metrics, so nothing would be scored")
    filters = _filters(values, file)
    keys = dict.fromkeys(_key(name, metric, kind) for metric in metrics for kind in filters)
    data = values.get("dataset_kwargs") or {}
    is_local = values.get("dataset_path") in _BUILDERS and data.get("data_files")
    is_local = is_local and "://" not in json.dumps(data)
    return CustomTask(
        name,
        file,
        tuple(keys),
        tuple(dict.fromkeys(files)),
        tuple(dict.fromkeys(modules)),
        data if is_local else None,
    )


def refuse_equal_names(tasks: Sequence[CustomTask], others: Sequence[str]) -> None:
    """Scores are kept by names.

    Raises:
        ValueError: two tasks have one name, or a task has one of the `others`.
    """
    names = [*others, *(task.name for task in tasks)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two tasks are called '{twice}'; give yours another name in its YAML")


def _filters(values: Mapping[str, Any], file: Path) -> list[str]:
    """The names of a task's filters: lmms-eval scores what each of them makes of the answers.

    Raises:
        ValueError: one has no name.
    """
    listed = values.get("filter_list")
    if listed is None:
        return [_NO_FILTER]
    names = [each.get("name") if isinstance(each, Mapping) else None for each in listed]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: each of filter_list must have a name, got {names or 'none'}")
    return names


def _key(task: str, metric: str, kind: str) -> str:
    """What a number is called, of the answers as filter `kind` gives them."""
    return f"{task}/{metric}" if kind == _NO_FILTER else f"{task}/{metric}/{kind}"


def _read(file: Path, files: list[Path], modules: list[str]) -> dict[str, Any]:
    """The file's values over those of the files that it includes; all that it reads goes to `files`, and
    what its functions lie in elsewhere to `modules`."""
    if not file.is_file():
        raise FileNotFoundError(f"task file not found: {file}")
    try:
        values = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} is no task: it must hold keys, got a {type(values).__name__}")
    code = {name: file.parent / f"{name}.py" for name in _modules(values)}  # as lmms-eval looks for it
    files += [file, *(path for path in code.values() if path.is_file())]
    modules += [name for name, path in code.items() if not path.is_file()]
    below: dict[str, Any] = {}
    included = values.get("include", [])
    for each in reversed([included] if isinstance(included, str) else included):
        below |= _read(Path(each) if Path(each).is_file() else file.parent / each, files, modules)
    values = below | {key: value for key, value in values.items() if key != "include"}
    given = values.get("dataset_kwargs") or {}
    if values.get("dataset_path") in _BUILDERS and given.get("data_files"):
        whole = _whole_paths(given["data_files"], file.parent)
        files += [Path(path) for path in _texts(whole) if "://" not in path]
        values["dataset_kwargs"] = {**given, "data_files": whole}
    return values


def _modules(values: Mapping[str, Any]) -> list[str]:
    """The modules of a YAML's functions."""
    named = [text.removeprefix(_FUNCTION) for text in _texts(values) if text.startswith(_FUNCTION)]
    return [name.rpartition(".")[0] for name in named]


def _whole_paths(paths: object, folder: Path) -> object:
    """`data_files` (a path, a list of them, or either by split) with whole paths in place of relative ones,
    also of wildcards, which lmms-eval leaves as they are; addresses stay.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(paths, Mapping):
        return {split: _whole_paths(each, folder) for split, each in paths.items()}
    if isinstance(paths, list):
        return [path for each in paths for path in _whole_paths(each, folder)]
    if "://" in str(paths):
        return [paths]
    found = [folder / path for path in glob.glob(str(paths), root_dir=folder, recursive=True)]
    found = [str(path) for path in found if path.is_file()]
    if not found:
        raise FileNotFoundError(f"data of a task not found: {folder / str(paths)}")
    return sorted(found)


def _texts(value: object) -> Iterator[str]:
    """Every text in mappings and lists."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(each)


# ---- scoring


def run_custom(task: CustomTask, folder: Path, evaluate: Callable) -> tuple[dict, list[dict]]:
    """(metrics, one row a question) of a task; `evaluate(task objects)` is lmms-eval's. `folder` takes a YAML
    that includes the task's own, since lmms-eval reads whole folders.

    Raises:
        Exception: whatever the task's data or code raises.
    """
    from lmms_eval.tasks import TaskManager, get_task_dict

    from encoder.data.embedded import refuse_outside_pictures

    for path in task.files:
        if path.suffix == ".parquet":
            refuse_outside_pictures(path)
    place = folder / task.name
    place.mkdir(parents=True, exist_ok=True)
    lines = [f"include: {json.dumps(str(task.file))}", f"task: {task.name}"]
    if task.is_local:
        lines.append(f"dataset_kwargs: {json.dumps(task.data)}")
    (place / f"{task.name}.yaml").write_text("\n".join(lines) + "\n")
    manager = TaskManager("ERROR", include_path=str(place), include_defaults=False)
    (loaded,) = get_task_dict([task.name], manager).values()
    results = evaluate([loaded])
    samples = results["samples"][task.name]
    metrics = read_numbers(task.name, results["results"][task.name], samples, loaded.higher_is_better())
    rows = [
        {"task": task.name, "doc_id": s["doc_id"], "answer": s["target"], "response": s["filtered_resps"][0]}
        for s in samples
    ]
    return metrics, rows


def read_numbers(
    name: str, results: Mapping[str, Any], samples: Sequence[Mapping], higher_is_better: Mapping[str, bool]
) -> dict[str, dict]:
    """Each metric of lmms-eval's results that is a number, its standard error where lmms-eval gives one, and
    how many questions it is of.

    Raises:
        ValueError: a metric is no number, or there is none.
    """
    metrics = {}
    for key, value in results.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric not in higher_is_better:
            continue  # alias, and standard errors, which come with their metric
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}/{metric} must be a number, lmms-eval gave a {type(value).__name__}")
        error = results.get(f"{metric}_stderr,{kind}")
        is_number = isinstance(error, int | float) and not isinstance(error, bool)
        metrics[_key(name, metric, kind)] = {
            "value": float(value),
            "stderr": float(error) if is_number else None,
            "unit": "",
            "higher_is_better": bool(higher_is_better[metric]),
            "num_samples": len({sample["doc_id"] for sample in samples if metric in sample}),
        }
    if not metrics:
        raise ValueError(f"{name}: lmms-eval gave no number of {', '.join(higher_is_better)}")
    return metrics
