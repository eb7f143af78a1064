"""What the language models of suite=understanding are taught and asked: Scenes, one's own captions, or
LLaVA-1.5's data and the public benchmarks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from encoder.runtime import hub
from encoder.runtime.config import ROOT, ConfigError, choose
from harness.running.sources import own_files, own_imports
from harness.running.stages import Stage
from harness.suites.request import Request
from harness.suites.shared import OWN_CAPTIONS, add_captions, add_scenes
from llava_bridge.benchmark_table import BENCHMARKS
from llava_bridge.custom_tasks import CustomTask, find_task, refuse_equal_names

PRETRAIN = "blip_laion_cc_sbu_558k.json"
# Source of stage 2 -> its records among its pictures; none for parquet files, which hold them
MIXES = {
    "llava_mix": "llava_v1_5_mix665k.json",
    "open_next_mix": "open-llava-next/open-llava-next_instruct_mix1M.json",
    "next_mix": None,
}
_STAGES = ("align", "instruct")  # LLaVA-1.5's first and second


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Data of both training stages and of the evaluation, as parts of their stages' configs."""

    keys: tuple[str, ...]  # what the answers are scored by
    stages: dict[str, dict[str, Any]]  # align and instruct -> fields of LlavaConfig
    questions: dict[str, Any]  # fields of EvaluateConfig
    asked: tuple[Path, ...]  # files with the questions
    truth: Literal["scenes", "captions"] | None = (
        None  # what a probe can be fitted to, of the pictures taught
    )
    custom: tuple[Path, ...] = ()  # all that tasks of one's own are made of, their questions too
    custom_keys: tuple[str, ...] = ()  # what those are scored by, beside `keys`
    data: Stage | None = None  # makes the pictures, which are then cached as tokens; None: live pictures
    files: tuple[Path, ...] = ()  # read by both training stages and made by none
    # align and instruct -> folder of records and pictures, made by none
    pictures: Mapping[str, Path] = field(default_factory=dict)
    data_sets: Mapping[str, Path] = field(default_factory=dict)  # benchmark -> its folder, if it is there
    language_model: str | None = None  # over the preset's
    places: dict[str, str] = field(default_factory=dict)  # what a row says of its sources

    @property
    def has_pairs(self) -> bool:
        """Whether the answers say which questions are twins, as comparing two encoders on them needs."""
        return self.data is not None

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The stage that all of them start from, if there is one."""
        return () if self.data is None else (self.data,)

    @property
    def asked_files(self) -> tuple[Path, ...]:
        """Files with questions that no stage makes, and without which nothing can be asked."""
        needed = self.asked if self.data is None and not self.data_sets else ()
        return (*needed, *self.custom)


def find_lessons(request: Request, mix: str = "llava_mix") -> Lessons:
    """Those that the preset means, and the tasks of one's own. mix: of real sources, what stage 2 reads.

    Raises:
        ConfigError: an unknown task.
        FileNotFoundError: a file of the real sources, or of a task, is not there.
    """
    lessons, tasks = _of_preset(request, mix), custom_tasks(request)
    if not tasks:
        return lessons
    words = [word for word in request.tasks or () if word not in BENCHMARKS]
    questions = {"custom": words, "include_path": request.preset.llava.include_path}
    return replace(
        lessons,
        questions=lessons.questions | questions,
        custom_keys=tuple(key for task in tasks for key in task.keys),
        custom=tuple(dict.fromkeys(file for task in tasks for file in _files_of(task))),
    )


def custom_tasks(request: Request) -> list[CustomTask]:
    """Those of `tasks=` that are no benchmarks.

    Raises:
        ConfigError: a word is neither a benchmark, nor the path of a YAML file, nor in llava.include_path.
        ValueError: two tasks have one name.
    """
    folder, found = request.preset.llava.include_path, []
    for word in request.tasks or ():
        if word in BENCHMARKS:
            continue
        if folder is None and not word.endswith((".yaml", ".yml")):
            choose(BENCHMARKS, word, "task")
        found.append(find_task(word, None if folder is None else ROOT / folder, ROOT))
    refuse_equal_names(found, [word for word in request.tasks or () if word in BENCHMARKS])
    return found


def _files_of(task: CustomTask) -> list[Path]:
    """All that a task is made of, what its code imports from one's own modules too."""
    code = [file for file in task.files if file.suffix == ".py"]
    imported = [each for file in code for each in own_imports(file)]
    return [*task.files, *imported, *(each for module in task.modules for each in own_files(module))]


def _of_preset(request: Request, mix: str) -> Lessons:
    if request.places is not None:
        return _real(request, mix)
    if request.preset.own_data:
        tasks = {OWN_CAPTIONS: f"lmms/{OWN_CAPTIONS}.parquet"}
        return _made(add_captions(request), tasks, ("Own-Captions",), "captions")
    return of_scenes(request, tuple(key for key in request.suite.keys if key.startswith("Scenes-")))


def of_scenes(request: Request, keys: tuple[str, ...]) -> Lessons:
    """The embedded world's, of which `keys` are wanted."""
    return _made(add_scenes(request), request.preset.llava.tasks, keys, "scenes")


def _made(
    data: Stage, tasks: Mapping[str, str], keys: tuple[str, ...], truth: Literal["scenes", "captions"]
) -> Lessons:
    """Records and questions in the folder of the stage that makes them, in the layout of Scenes."""
    asked = {name: str(data.folder / path) for name, path in tasks.items()}
    records = {"align": "pretrain", "instruct": "instruct"}
    return Lessons(
        keys=keys,
        stages={name: {"data": [str(data.folder / "llava" / f"{records[name]}.json")]} for name in _STAGES},
        questions={"tasks": asked},
        asked=tuple(map(Path, asked.values())),
        truth=truth,
        data=data,
    )


def _real(request: Request, mix: str) -> Lessons:
    """LLaVA's own records on live pictures, and the benchmarks' parquet files."""
    places = request.places
    given = request.tasks or request.preset.llava.benchmarks
    wanted = [name for name in given if name in BENCHMARKS or not request.tasks]
    chosen = [choose(BENCHMARKS, name, "task") for name in wanted]
    if not given:
        raise ConfigError("no benchmarks: give tasks=[...] or llava.benchmarks")
    pretrain, folder, records = places["llava_pretrain"], places[mix], MIXES[mix]
    among = {"data": [str(folder)]}
    if records is not None:
        among = {"data": [str(folder / records)], "image_root": str(folder)}
    stages = {
        "align": {"data": [str(pretrain / PRETRAIN)], "image_root": str(pretrain / "images")},
        "instruct": among,
    }
    keys = dict.fromkeys(key for benchmark in chosen for key in benchmark.keys)
    return Lessons(
        keys=tuple(keys),
        stages=stages,
        questions={"benchmarks": list(wanted), "data_root": str(places["benchmarks"])},
        asked=(places["benchmarks"],) if wanted else (),
        files=(places["language_model"],),
        pictures={"align": pretrain, "instruct": folder},
        data_sets={name: _folder(places["benchmarks"], name) for name in wanted},
        language_model=str(places["language_model"]),
        places={"language model": hub.name_of(places["language_model"])},
    )


def _folder(root: Path, task: str) -> Path:
    """Where a benchmark's files lie: in a folder called as the task, else as its data set on the hub."""
    own = root / task
    return own if own.is_dir() else root / BENCHMARKS[task].data_set
