"""Answers right and wrong, with the pictures that were asked about.

The answers are `samples.jsonl` of the stages that `llava_bridge.evaluate` ran, the questions and pictures the
parquet files that their configs name; where either is gone, the report goes without. For each task and each
pattern of who was right, questions evenly spaced through the set are shown: never chosen.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from encoder.runtime.config import ROOT, read_yaml
from harness.report.inline_pictures import data_uri
from harness.report.markup import Markup, element
from harness.tables.results_folder import SavedSuite

_STAGE = "llava_bridge.evaluate"
_PER_PATTERN = 3
_MAX_PATTERNS = 8
_MAX_LETTERS = 160  # of an answer
Answers = dict[str, dict[str, dict]]  # encoder -> question id -> line of samples.jsonl


def answers(suite: SavedSuite) -> Markup | None:
    """The section, or None where no answers are at hand."""
    folders = _stage_folders(suite)
    if not folders:
        return None
    parts = []
    for task, parquet in _tasks(folders.values()).items():
        given = {encoder: _read_answers(folder, task) for encoder, folder in folders.items()}
        chosen = _choose(given)
        documents = _read_documents(parquet, [question for ids in chosen.values() for question in ids])
        for pattern, ids in chosen.items():
            cards = [_card(documents[name], name, given) for name in ids if name in documents]
            if cards:
                parts.append(element("h4", f"{task}: {pattern}"))
                parts.append(element("div", *cards, class_="cards"))
    if not parts:
        return None
    note = element("p", "Evenly spaced through the questions, never chosen.", class_="note")
    return element("details", element("summary", "Answers, right and wrong"), note, *parts)


def _stage_folders(suite: SavedSuite) -> dict[str, Path]:
    """encoder -> folder with its answers."""
    folders = {}
    for row, _, name in suite.numbers():
        if row["encoder"] in folders:
            continue
        content = suite.result(name)
        folder = ROOT / content["folder"]
        if content["stage"] == _STAGE and (folder / "samples.jsonl").is_file():
            folders[row["encoder"]] = folder
    return folders


def _tasks(folders: Iterable[Path]) -> dict[str, Path]:
    """task -> parquet file that is there."""
    tasks = {}
    for folder in folders:
        for task, place in read_yaml(folder / "config.yaml")["tasks"].items():
            if place is not None and (ROOT / place).is_file():
                tasks.setdefault(task, ROOT / place)
    return tasks


def _read_answers(folder: Path, task: str) -> dict[str, dict]:
    with (folder / "samples.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    return {str(line["question_id"]): line for line in lines if line["task"] == task}


def _choose(given: Answers) -> dict[str, list[str]]:
    """Who was right -> some questions where it was so, most frequent pattern first."""
    patterns: dict[str, list[str]] = {}
    shared = [name for name in next(iter(given.values())) if all(name in lines for lines in given.values())]
    for name in shared:
        right = [encoder for encoder, lines in given.items() if lines[name]["is_correct"]]
        pattern = "all right" if len(right) == len(given) else f"right: {', '.join(right)}"
        patterns.setdefault(pattern if right else "all wrong", []).append(name)
    ordered = sorted(patterns, key=lambda pattern: -len(patterns[pattern]))[:_MAX_PATTERNS]
    return {
        f"{pattern} ({len(patterns[pattern])} of {len(shared)})": _spaced(patterns[pattern])
        for pattern in ordered
    }


def _spaced(ids: list[str]) -> list[str]:
    """At most `_PER_PATTERN` of them, evenly spaced."""
    num = min(_PER_PATTERN, len(ids))
    return [ids[i * len(ids) // num] for i in range(num)]


def _read_documents(parquet: Path, ids: list[str]) -> dict[str, dict]:
    """Rows of a parquet file by question id."""
    import pyarrow.parquet as pq  # here: most runs of the command line have no use for it

    table = pq.read_table(parquet, filters=[("question_id", "in", ids)]) if ids else None
    return {str(row["question_id"]): row for row in table.to_pylist()} if table else {}


def _card(document: Mapping, name: str, given: Answers) -> Markup:
    images = document["image"] if isinstance(document["image"], list) else [document["image"]]
    uris = [data_uri(image["bytes"]) for image in images[:1] if image and image["bytes"]]
    pictures = [element("img", src=uri, alt="the picture asked about") for uri in uris if uri]
    options = [
        element("li", document[f"choice_{letter}"], class_="due" if letter.upper() == answer else None)
        for answer in [document["answer"]]
        for letter in "abcd"
        if document.get(f"choice_{letter}")
    ]
    due = element("p", "answer: ", document["answer"], class_="note")
    said = [_said(encoder, lines[name]) for encoder, lines in given.items()]
    return element(
        "article",
        *pictures,
        element(
            "div",
            element("p", document["question"], class_="question"),
            element("ol", *options) if options else due,
            element("ul", *said, class_="said"),
        ),
    )


def _said(encoder: str, line: Mapping) -> Markup:
    sign, word = ("✓", "right") if line["is_correct"] else ("✗", "wrong")
    mark = element("span", sign, role="img", aria_label=word)
    response = str(line["response"])[:_MAX_LETTERS] or "(nothing)"
    return element("li", mark, f" {encoder}: ", element("q", response), class_=word)
