"""Scenes-SEED and Scenes-POPE as parquet files, with the columns that lmms-eval's seedbench and pope tasks
read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from encoder.data.scenes.drawing import Drawing
from encoder.data.scenes.questions import pope_questions, seed_questions
from encoder.data.scenes.scene import Scene
from encoder.runtime.files import replacing

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ROWS_PER_GROUP = 256
Mapper = Callable[[Callable[[Scene], bytes], Iterable[Scene]], Iterable[bytes]]  # `map`, or a pool's


def png(scene: Scene, how: Drawing | int) -> bytes:
    """The picture of a scene as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(Drawing.of(how)(scene)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def write_seed(
    path: Path, seed: int, num_per_dimension: int, how: Drawing | int, mapper: Mapper = map
) -> int:
    """Scenes-SEED (columns of lmms-lab/SEED-Bench, and `group`, the number of the twin group), its pictures
    drawn by `mapper`. Returns the rows."""
    rows, questions = [], list(seed_questions(seed, num_per_dimension))
    pictures = mapper(partial(png, how=how), [question.scene for question in questions])
    for number, (question, data) in enumerate(zip(questions, pictures, strict=True)):
        picture = {"bytes": data, "path": f"seed_{number:06d}.png"}
        choices = {
            f"choice_{letter}": option for letter, option in zip("abcd", question.options, strict=True)
        }
        rows.append(
            {"question": question.question, **choices, "answer": question.answer, "data_type": "image"}
            | {"question_id": str(number), "question_type_id": question.dimension, "group": question.group}
            | {"image": [picture]}
        )
    fields = [(name, pa.string()) for name in ("question", "choice_a", "choice_b", "choice_c", "choice_d")]
    fields += [("answer", pa.string()), ("data_type", pa.string()), ("question_id", pa.string())]
    fields += [("question_type_id", pa.int64()), ("group", pa.int64()), ("image", pa.list_(_PICTURE))]
    _write(path, rows, fields, {"image": {"feature": {"_type": "Image"}, "_type": "List"}})
    return len(rows)


def write_pope(path: Path, seed: int, num_pairs: int, how: Drawing | int, mapper: Mapper = map) -> int:
    """Scenes-POPE (columns of lmms-lab/POPE, and `group`), its pictures drawn by `mapper`. Returns the
    rows."""
    rows, questions = [], list(pope_questions(seed, num_pairs))
    pictures = mapper(partial(png, how=how), [question.scene for question in questions])
    for number, (question, data) in enumerate(zip(questions, pictures, strict=True)):
        name = f"pope_{number:06d}"
        rows.append(
            {"id": str(number), "question_id": str(number), "question": question.question}
            | {"answer": question.answer, "image_source": name, "category": question.category}
            | {"group": question.group, "image": {"bytes": data, "path": f"{name}.png"}}
        )
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    fields = [(name, pa.string()) for name in names] + [("group", pa.int64()), ("image", _PICTURE)]
    _write(path, rows, fields, {"image": {"_type": "Image"}})
    return len(rows)


def _write(path: Path, rows: list[dict[str, Any]], fields: list[tuple], pictures: dict[str, Any]) -> None:
    """Parquet whose metadata tells `datasets` which columns hold pictures."""
    names = {pa.string(): "string", pa.int64(): "int64"}
    features = {
        name: {"dtype": names[kind], "_type": "Value"} for name, kind in fields if kind in names
    } | pictures
    info = json.dumps({"info": {"features": {name: features[name] for name, _ in fields}}})
    schema = pa.schema(fields, metadata={"huggingface": info})
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, row_group_size=_ROWS_PER_GROUP)
