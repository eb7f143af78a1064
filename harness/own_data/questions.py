"""Stage: the captions of one's own pictures as LLaVA's training data and as questions.

`python -m harness.own_data.questions <config.yaml> <out_dir>` reads what `harness.own_data` wrote: the train
pictures become records for both stages (out_dir/llava: images/, pretrain.json, instruct.json), the test
pictures questions (out_dir/lmms/own_captions.parquet): which of four captions is this picture's?

The questions come in groups: four pictures whose captions differ, each asked with the same four captions, of
which each is right once. Whoever sees no picture is therefore right in exactly 25 %.
"""

import dataclasses
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

from encoder.runtime.config import ROOT
from encoder.runtime.files import replacing
from encoder.runtime.stage import main, write_json

QUESTION = "Describe the picture."
OPTIONS = 4  # of a question, and questions of a group
# Tells `datasets` that the column holds pictures
_PICTURES = {"image": {"feature": {"_type": "Image"}, "_type": "List"}}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnCaptionsConfig:
    """What to read and how much to ask."""

    data: str  # folder of harness.own_data
    num_questions: int = 2000  # at most; of the test pictures
    seed: int = 0  # of the groups

    def __post_init__(self) -> None:
        if self.num_questions < OPTIONS:
            raise ValueError(
                f"num_questions {self.num_questions} must be {OPTIONS} or more: they come in groups"
            )


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture (PNG) and its caption."""

    key: str
    png: bytes
    caption: str


def run(config: OwnCaptionsConfig, out_dir: Path) -> dict:
    """Write both.

    Raises:
        ValueError: the test pictures have fewer than four different captions.
    """
    num_train = _write_llava(read(ROOT / config.data, "train"), out_dir / "llava")
    test = list(read(ROOT / config.data, "test"))
    groups = twin_groups(test, config.seed)[: config.num_questions // OPTIONS]
    if not groups:
        raise ValueError(
            f"{config.data}: no {OPTIONS} of the {len(test)} test pictures have different captions; add "
            "some, or raise own_data.test_fraction"
        )
    (out_dir / "lmms").mkdir(exist_ok=True)
    _write_questions(groups, out_dir / "lmms" / "own_captions.parquet")
    return {"num_train": num_train, "num_test": len(test), "num_questions": OPTIONS * len(groups)}


def read(folder: Path, split: str) -> Iterator[Captioned]:
    """The pictures of a split with their captions."""
    from PIL import Image  # here and below: the command line asks this module for its config only

    from encoder.data.shards import read_samples

    for sample in read_samples(folder, split):
        buffer = io.BytesIO()
        Image.fromarray(sample.pixels).save(buffer, "PNG")
        yield Captioned(sample.key, buffer.getvalue(), sample.record["txt"].strip())


def twin_groups(pictures: list[Captioned], seed: int) -> list[list[Captioned]]:
    """Groups of four pictures with four different captions, drawn from the seed; what is left over is not
    asked."""
    order = list(pictures)
    random.Random(seed).shuffle(order)
    complete: list[list[Captioned]] = []
    begun: list[list[Captioned]] = []
    for picture in order:
        group = next((each for each in begun if all(picture.caption != own.caption for own in each)), None)
        if group is None:
            begun.append(group := [])
        group.append(picture)
        if len(group) == OPTIONS:
            begun.remove(group)
            complete.append(group)
    return complete


def _write_llava(pictures: Iterator[Captioned], folder: Path) -> int:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for number, picture in enumerate(pictures):
        name = f"images/{number:09d}.png"
        (folder / name).write_bytes(picture.png)
        turns = [("human", f"<image>\n{QUESTION}"), ("gpt", picture.caption)]
        said = [{"from": speaker, "value": text} for speaker, text in turns]
        records.append({"id": f"{number:09d}", "image": name, "conversations": said})
    for name in ("pretrain", "instruct"):
        write_json(folder / f"{name}.json", records)
    return len(records)


def _write_questions(groups: list[list[Captioned]], path: Path) -> None:
    """Columns as Scenes-SEED has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["question_id", "question", "answer", *(f"choice_{letter}" for letter in "abcd")]
    rows = []
    for number, group in enumerate(groups):
        choices = {f"choice_{letter}": own.caption for letter, own in zip("abcd", group, strict=True)}
        for letter, picture in zip("ABCD", group, strict=True):
            asked = {"question_id": str(len(rows)), "question": QUESTION, "answer": letter, "group": number}
            rows.append({**asked, **choices, "image": [{"bytes": picture.png, "path": f"{picture.key}.png"}]})
    kinds = {name: pa.string() for name in texts} | {"group": pa.int64()}
    kinds["image"] = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {name: {"dtype": "string", "_type": "Value"} for name in texts}
    features |= {"group": {"dtype": "int64", "_type": "Value"}, **_PICTURES}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()), metadata=about))
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


if __name__ == "__main__":
    main(OwnCaptionsConfig, run)
