"""LLaVA-1.5's data: the 558k captions of the first stage, and the mix of 665k conversations of the second.

Source: haotian-liu/LLaVA@c121f04, scripts/v1_5/{pretrain,finetune}.sh and README, "Visual instruction tuning"
(file names, the folders of pictures); reference sheet "LLaVA-1.5 recipe", Sec. 1.1 and 1.2 (records, turns).
A record is {id, image?, conversations: [{from: human | gpt, value}]}; `image` is relative to images/ in the
first stage, to the folder of the picture sets in the second. Rows of ShareGPT have no `image` and a `model`,
and some begin with a turn of gpt.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from encoder.data.scenes.conversations import choice_turn, presence_turn, word_prompt
from encoder.data.scenes.questions import facts
from encoder.data.scenes.scene import Scene
from encoder.data.scenes.text import org_caption, re_caption
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme
from harness.replica.pictures import draw, jpeg, scenes, size_of

PRETRAIN, PRETRAIN_JSON = "LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json"
MIX, MIX_JSON = "LLaVA-Instruct", "llava_v1_5_mix665k.json"
# the sets of pictures of the mix: how a picture of each is called
NAMES = {
    "coco/train2017": "{:012d}.jpg",
    "gqa/images": "{}.jpg",
    "ocr_vqa/images": "{:09d}.jpg",
    "textvqa/train_images": "{:016x}.jpg",
    "vg/VG_100K": "{}.jpg",
    "vg/VG_100K_2": "{}.jpg",
}
_TEXT_ONLY = 8  # one row without a picture to so many with one
_INSTRUCTIONS = ("Describe the image concisely.", "What is this?", "Write a terse but informative summary.")
Record = dict[str, Any]
Drawn = tuple[Record, bytes | None]  # a record and its picture, if it has one


def write_pretrain(root: Path, config: ReplicaConfig) -> str:
    """LLaVA-Pretrain as on the hub (liuhaotian/LLaVA-Pretrain), images.zip unpacked into images/."""
    folder, records = root / PRETRAIN, []
    stream = scenes(config.seed, PRETRAIN, "train")
    for number in range(config.pretrain_records):
        scene, rng = next(stream), random.Random(f"{config.seed}/pretrain/{number}")
        name = f"{number * 1237:09d}"
        image = f"{number % 4:05d}/{name}.jpg"
        _write(folder / "images" / image, jpeg(draw(scene, size_of(number))))
        words = rng.choice(_INSTRUCTIONS)
        human = f"<image>\n{words}" if rng.random() < 0.5 else f"{words}\n<image>"
        records.append(_record(name, [(human, org_caption(scene))], image))
    _write(folder / PRETRAIN_JSON, json.dumps(records, indent=2).encode())
    (folder / README).write_text(readme("LLaVA-Pretrain", "hub: liuhaotian/LLaVA-Pretrain"))
    return f"{len(records)} records, each with a picture"


def write_mix(root: Path, config: ReplicaConfig) -> str:
    """The mix (hub: liuhaotian/LLaVA-Instruct-150K) with the five sets of pictures beside it."""
    said = write_records(root / MIX, MIX_JSON, mix(MIX, NAMES, config.mix_records, config.seed))
    (root / MIX / README).write_text(
        readme("LLaVA-1.5's mix of 665k", "hub: liuhaotian/LLaVA-Instruct-150K; pictures: see docs/paper.md")
    )
    return f"{said}, pictures of {len(NAMES)} folders"


def mix(source: str, names: Mapping[str, str], num_pictured: int, seed: int) -> Iterator[Drawn]:
    """Records of conversations and their pictures, called as `names` says, of its folders in turn; one record
    more in eight is text alone."""
    stream = scenes(seed, source, "train")
    for number in range(num_pictured):
        scene, rng = next(stream), random.Random(f"{seed}/{source}/{number}")
        place = list(names)[number % len(names)]
        name = names[place].format(number * 7919 + 1)
        picture = jpeg(draw(scene, size_of(number)))
        yield _record(Path(name).stem, list(_turns(scene, rng)), f"{place}/{name}"), picture
        if number % _TEXT_ONLY == 0:
            yield _text_only(scene, number), None


def write_records(folder: Path, file: str, drawn: Iterable[Drawn]) -> str:
    """Write pictures where their records name them below `folder`, and the records in any order."""
    records = []
    for record, picture in drawn:
        if picture is not None:
            _write(folder / record["image"], picture)
        records.append(record)
    random.Random(file).shuffle(records)
    _write(folder / file, json.dumps(records, indent=2).encode())
    num_text = sum("image" not in record for record in records)
    return f"{len(records)} records, {num_text} of them text alone"


def _turns(scene: Scene, rng: random.Random) -> Iterator[tuple[str, str]]:
    """A few turns as the mix has them: Yes/No, a letter, a word, a description; the first holds the picture,
    before its words or after them."""
    fact = rng.choice(facts(scene))
    turns = [
        presence_turn(scene, rng),
        choice_turn(scene, fact, rng),
        (word_prompt(fact.question), fact.answer),
    ]
    rng.shuffle(turns)
    turns = [*turns[: rng.randint(1, 3)], ("Describe the image in detail.", re_caption(scene))]
    question, answer = turns[0]
    yield (f"<image>\n{question}" if rng.random() < 0.8 else f"{question}\n<image>"), answer
    yield from turns[1:]


def _text_only(scene: Scene, number: int) -> Record:
    """A row as ShareGPT's; every second one begins with what is left of an earlier answer."""
    record = _record(f"Sg{number:05d}_0", [("Tell me of a place.", re_caption(scene)), ("Shorter.", "No.")])
    if number // _TEXT_ONLY % 2:
        record["conversations"].insert(0, {"from": "gpt", "value": org_caption(scene)})
    return {"id": record["id"], "model": "", "conversations": record["conversations"]}


def _record(name: str, turns: list[tuple[str, str]], image: str | None = None) -> Record:
    values = [
        {"from": who, "value": value}
        for turn in turns
        for who, value in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": name} | ({"image": image} if image else {}) | {"conversations": values}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
