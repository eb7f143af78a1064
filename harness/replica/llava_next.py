"""LLaVA-NeXT's two public mixes of conversations.

Source: xiaoachen98/Open-LLaVA-NeXT, docs/Data.md (file names, folders of pictures; how a picture of each is
called is from memory); the card of lmms-lab/LLaVA-NeXT-Data (columns, types, file names), whose rows of text
come last and hold no picture, whose pictures' paths are bare file names, and whose data_source is one in all.
"""

import itertools
from pathlib import Path

from harness.replica import hub
from harness.replica.config import ReplicaConfig
from harness.replica.llava import Record, mix, write_records
from harness.replica.mark import README, readme

OPEN, OPEN_JSON = "Open-LLaVA-NeXT", "open-llava-next/open-llava-next_instruct_mix1M.json"
NEXT = "LLaVA-NeXT-Data"
# the sets of pictures of Open-LLaVA-NeXT's mix: how a picture of each is called
NAMES = {
    "llava/llava_pretrain/images/00000": "{:09d}.jpg",
    "coco/train2017": "{:012d}.jpg",
    "sam/images": "sa_{}.jpg",
    "gqa/images": "{}.jpg",
    "ocr_vqa/images": "{:09d}.jpg",
    "textvqa/train_images": "{:016x}.jpg",
    "vg/VG_100K": "{}.jpg",
    "vg/VG_100K_2": "{}.jpg",
    "web-celebrity/images": "{}.jpg",
    "web-landmark/images": "{}.jpg",
    "wikiart/images": "{}.jpg",
    "share_textvqa/images": "{:016x}.jpg",
    "allava_vflan/images/images_191task_1k": "{}.jpg",
    "ai2d/images": "{}.jpg",
    "chatqa/train/png": "{}.jpg",
    "docvqa/train/documents": "{}.jpg",
    "dvqa/images": "bar_train_{:08d}.jpg",
    "geoqa+/images": "{}.jpg",
    "synthdog-en/images": "image_{}.jpg",
}


def write_open_mix(root: Path, config: ReplicaConfig) -> str:
    """Open-LLaVA-NeXT's mix of 1M: one JSON, the sets of pictures beside its folder."""
    said = write_records(root / OPEN, OPEN_JSON, mix(OPEN, NAMES, config.next_records, config.seed))
    (root / OPEN / README).write_text(
        readme(
            "Open-LLaVA-NeXT's mix of 1M", "hub: Lin-Chen/Open-LLaVA-NeXT-mix1M; pictures: see docs/paper.md"
        )
    )
    return f"{said}, pictures of {min(len(NAMES), config.next_records)} folders"


def write_next_mix(root: Path, config: ReplicaConfig) -> str:
    """LLaVA-NeXT's mix of 779k: parquet files that hold their pictures."""
    from datasets import Features, Image, List

    features = Features(
        hub.strings("id")
        | {"conversations": List(hub.strings("from", "value"))}
        | hub.strings("data_source")
        | {"image": Image()}
    )
    drawn = list(mix(NEXT, {"coco/train2017": "{:012d}.jpg"}, config.next_records, config.seed))
    pictured = [_row(*each) for each in drawn if each[1] is not None]
    of_text = [_row(*each) for each in drawn if each[1] is None]
    folder = root / NEXT
    folder.mkdir()
    parts = hub.Config("default", "data", features, {"train": [*pictured, *of_text]})
    hub.write_data_set(
        folder, [parts], readme("LLaVA-NeXT's mix of 779k", f"hub: lmms-lab/{NEXT}"), num_files=2
    )
    return f"{len(drawn)} rows, {len(of_text)} of them text alone"


def _row(record: Record, picture: bytes | None) -> hub.Row:
    turns = itertools.dropwhile(lambda turn: turn["from"] != "human", record["conversations"])
    return {
        "id": record["id"],
        "conversations": list(turns),
        "data_source": "llava-next-instruct",
        "image": hub.picture(picture, Path(record["image"]).name) if picture is not None else None,
    }
