"""Part of bench/llava.py: what the processes of a launch hold of the training data's records.

NUM_RECORDS conversations, each with a picture of its own (links to one file), lengths as in bench/llava.py
but four times as long, like the 665k mix. Two processes that come at once, of which one tokenises; then one
that finds the store; then the former way, where each process read, tokenised and held everything. By how
much resident memory rises at most until the data set stands.

As a script, `_records.py FOLDER`, it imports everything once and forks the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _loading import peak_rise
from _table import ROOT, Row, make_row

NUM_RECORDS, NUM_IMAGE_TOKENS, MAX_LENGTH = 10_000, 576, 2048
TEMPLATE = "vicuna_v1"


def make_records(folder: Path) -> None:
    """Write the records and their pictures."""
    from PIL import Image

    from encoder.data.scenes.text import VOCABULARY

    draw, words = np.random.default_rng(0), [word for word in VOCABULARY if word.isalpha()]
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "one.jpg")
    records = []
    for i in range(NUM_RECORDS):
        name = f"coco/train2017/{i:012}.jpg".replace("/", "_")
        (folder / "pictures" / name).symlink_to(folder / "one.jpg")
        length = min(4 * 496, int(240 * np.exp(0.9 * draw.standard_normal())) + 4)
        said = [" ".join(draw.choice(words, length // 4 + 1)) for _ in range(4)]
        turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, said, strict=True)]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        records.append({"id": f"{i:012}", "image": name, "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records))


def ways(folder: Path) -> dict[str, Callable[[], object]]:
    """How a process comes to its samples: by the store, made or found, and as each did before."""
    from transformers import AutoTokenizer

    from encoder.runtime.stage import sha256_json
    from llava_bridge.config import LlavaConfig
    from llava_bridge.data import LlavaDataset, read_dataset, read_records
    from llava_bridge.hf import UnitImageProcessor
    from llava_bridge.pictures import LivePictures
    from llava_bridge.prompt import encode_conversations

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "weights" / "demo" / "llama")
    pictures = LivePictures(folder / "pictures", UnitImageProcessor(64), allow_outside_root=True)
    config = LlavaConfig(
        stage=2, encoder="blind", data=[str(folder / "records.json")], image_root=str(folder / "pictures"),
        init="-", batch_size=8, learning_rate=1e-3, max_length=MAX_LENGTH,
        records_cache=str(folder / "cache"),
    )  # fmt: skip

    def store() -> object:
        return read_dataset(config, NUM_IMAGE_TOKENS, tokenizer, pictures, folder)

    def former() -> object:
        records = read_records([folder / "records.json"])
        assert all(pictures.fault(record["image"]) is None for record in records)
        samples = encode_conversations(records, TEMPLATE, tokenizer, NUM_IMAGE_TOKENS, MAX_LENGTH)
        sha256_json(records)
        return LlavaDataset(samples, [record["image"] for record in records], None)

    return {"store": store, "former": former}


def fork(work: Callable[[], object], answer: Path) -> int:
    """Start a process that writes the peak of `work` in MiB to `answer`; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            answer.write_text(json.dumps(peak_rise(work) / 2**20))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def measure(folder: Path) -> None:
    """Fork the processes, those of a group at once, and write what each says."""
    by_name, answers = ways(folder), {}
    for group in (("store", "store"), ("store",), ("former",)):
        paths = [folder / f"answer-{len(answers)}-{i}" for i in range(len(group))]
        pids = [fork(by_name[name], path) for name, path in zip(group, paths, strict=True)]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(statuses):
            sys.exit("reading the records failed")
        answers[len(answers)] = [json.loads(path.read_text()) for path in paths]
    (folder / "answers.json").write_text(json.dumps(answers))


def record_rows() -> list[Row]:
    """Peak memory of a process that makes the store, and of one that finds it, against the former way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_records(folder)
        environ = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        subprocess.run([sys.executable, __file__, name], env=environ, check=True, stdout=subprocess.DEVNULL)
        answers = json.loads((folder / "answers.json").read_text())
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*")) / 2**20
    (former,), (found,), first = answers["2"], answers["1"], answers["0"]
    note = f"{NUM_RECORDS:,} records with a picture each, {size:.0f} MiB of store; baseline: each process "
    note += "reads, tokenises and holds all, as before"
    both = ", ".join(f"{each:.0f}" for each in sorted(first))
    made = f"{note}; two at once on an empty cache, one waits and maps: {both}"
    rows = (("records/found", found, note), ("records/made", max(first), made))
    return [
        make_row(name, "MiB a rank", ours, former, text, higher_is_better=False) for name, ours, text in rows
    ]


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
