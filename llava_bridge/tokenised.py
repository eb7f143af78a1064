"""Records tokenised once: what every run over the same records, tokenizer and template has in common.

A picture is one placeholder here and becomes its tokens when a sample is read, so encoders of any number of
tokens share one store. On disk it is a folder of plain arrays, which every process maps and none holds, with
`about.json` written last: without it the folder is begun anew. It may be deleted at any time.

Letters: T tokens of all records together, M records that can be used, P different pictures.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from encoder.data import records as records_module
from encoder.data.account import BadSample
from encoder.data.records import IMAGE, holds_pictures, record_files
from encoder.runtime.files import replacing
from encoder.runtime.stage import make_writable, sha256_file, sha256_json, write_json
from llava_bridge import prompt
from llava_bridge.config import Template
from llava_bridge.labels import IGNORE, Encoded, first_supervised
from llava_bridge.prompt import encode_conversations

ABOUT = "about.json"
_ARRAYS = {  # name -> type; T, then M each, P in the last two
    "input_ids": np.int32,
    "is_supervised": np.bool_,
    "lengths": np.int32,
    "marks": np.int32,
    "firsts": np.int32,
    "pictures": np.int32,
    "digests": np.dtype("V16"),
    "name_bytes": np.uint8,
    "name_lengths": np.int32,
    "picture_bytes": np.uint8,
    "picture_lengths": np.int32,
}
_RECORDS_AT_ONCE = 1000
_READERS = (records_module, prompt)  # whose code decides what is stored
_PACKAGES = ("tokenizers", "transformers", "jinja2")
Arrays = dict[str, np.ndarray]


class Texts(Sequence):
    """Short texts end to end in an array of bytes, which may be mapped."""

    def __init__(self, data: np.ndarray, lengths: np.ndarray):
        self.data, self.ends = data, np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.data[start : self.ends[index]].tobytes().decode()


@dataclass(frozen=True, slots=True)
class Tokenised:
    """M records as tokens, and those that cannot be used whatever the encoder.

    ends: of each record's tokens. marks: place of its picture's placeholder among them, -1 without. firsts:
    place of its first supervised token. pictures: its picture among `picture_names`, -1 without. digests: of
    the record's content.
    """

    input_ids: np.ndarray  # T
    is_supervised: np.ndarray  # T
    ends: np.ndarray
    marks: np.ndarray
    firsts: np.ndarray
    pictures: np.ndarray
    digests: np.ndarray
    names: Texts  # M
    picture_names: Texts  # P
    num_read: int
    bad: list[BadSample]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> Encoded:
        """A record's token ids, its picture still one placeholder, and labels."""
        tokens = slice(self.ends[row - 1] if row else 0, self.ends[row])
        ids = np.array(self.input_ids[tokens])
        return Encoded(ids, np.where(self.is_supervised[tokens], ids, np.int32(IGNORE)))

    @classmethod
    def of(
        cls,
        records: Sequence[Mapping],
        template: Template,
        tokenizer: PreTrainedTokenizerBase,
        refused: Sequence[BadSample] = (),
    ) -> "Tokenised":
        """Records tokenised in memory; refused: those that could not be read."""
        bad = list(refused)
        parts = list(_tokenise(records, template, tokenizer, bad))
        arrays = {name: np.concatenate([part[name] for part in parts if name in part]) for name in _ARRAYS}
        return cls._from(arrays, len(records) + len(refused), bad)

    @classmethod
    def open(cls, folder: Path) -> "Tokenised":
        """Map what `write` left in a folder.

        Raises:
            ValueError: a file is missing or cut off.
        """
        about = json.loads((folder / ABOUT).read_text())
        arrays = {}
        for name, dtype in _ARRAYS.items():
            path, size = folder / name, about["bytes"][name]
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(f"{path} is damaged; delete {folder}, the same command makes it again")
            arrays[name] = np.memmap(path, dtype, "r") if size else np.empty(0, dtype)
        return cls._from(arrays, about["num_read"], [BadSample(*each) for each in about["bad"]])

    @classmethod
    def _from(cls, arrays: Arrays, num_read: int, bad: list[BadSample]) -> "Tokenised":
        texts = {
            name: Texts(arrays.pop(f"{name}_bytes"), arrays.pop(f"{name}_lengths"))
            for name in ("name", "picture")
        }
        ends = np.cumsum(arrays.pop("lengths"), dtype=np.int64)
        shared = {"num_read": num_read, "bad": bad, "names": texts["name"], "picture_names": texts["picture"]}
        return cls(**arrays, ends=ends, **shared)


def write(
    folder: Path,
    records: Sequence[Mapping],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    refused: Sequence[BadSample] = (),
) -> None:
    """Tokenise records into a folder, a part of them in memory at a time."""
    make_writable(folder)
    bad, sizes = list(refused), dict.fromkeys(_ARRAYS, 0)
    with ExitStack() as stack:
        paths = {name: stack.enter_context(replacing(folder / name)) for name in _ARRAYS}
        with ExitStack() as opened:
            files = {name: opened.enter_context(path.open("wb")) for name, path in paths.items()}
            for part in _tokenise(records, template, tokenizer, bad):
                for name, array in part.items():
                    sizes[name] += files[name].write(array.tobytes())
    named = [[each.name, each.reason] for each in bad]
    about = {"num_read": len(records) + len(refused), "bytes": sizes, "bad": named}
    write_json(folder / ABOUT, about)


def is_whole(folder: Path) -> bool:
    """Whether `write` came to its end."""
    return (folder / ABOUT).is_file()


def key_of(paths: Sequence[Path], template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a store is kept under: the content of the records' files, the template, all that the tokenizer
    does, and the code. A parquet file that holds the pictures too is known by its path, size and time, as
    their copy is (`encoder.data.embedded`).

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not parquet.
    """
    machine = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {
        "tokenizer": {key: value for key, value in machine.items() if key not in ("truncation", "padding")},
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template if template == "chat" else None,
        "template": template,
        "packages": {name: version(name) for name in _PACKAGES},
        "code": [sha256_file(Path(path)) for path in (__file__, *(each.__file__ for each in _READERS))],
    }
    return sha256_json(rules | {"files": [_identity(path) for path in record_files(paths)]})[:24]


def _identity(path: Path) -> list:
    if path.suffix.lower() == ".parquet" and holds_pictures(path):
        state = path.resolve().stat()
        return [str(path.resolve()), state.st_size, state.st_mtime_ns]
    return [path.name, sha256_file(path)]


def _tokenise(
    records: Sequence[Mapping], template: Template, tokenizer: PreTrainedTokenizerBase, bad: list[BadSample]
) -> Iterator[Arrays]:
    """Arrays of a part of the records after the other; those that cannot be used go to `bad`."""

    def refuse(name: str, reason: str) -> None:
        bad.append(BadSample(name, reason))

    sound = sound_records(records, bad)
    places = {name: place for place, name in enumerate(asked_pictures(sound))}
    yield _text_arrays("picture", places)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    for start in range(0, max(1, len(sound)), _RECORDS_AT_ONCE):
        part = sound[start : start + _RECORDS_AT_ONCE]
        encoded = encode_conversations(part, template, tokenizer, refuse=refuse)
        kept = [(record, each) for record, each in zip(part, encoded, strict=True) if each is not None]
        yield _arrays(kept, places, image_id)


def sound_records(records: Sequence[Mapping], bad: list[BadSample]) -> list[Mapping]:
    """The records whose picture and its mark fit together; the others go to `bad`."""
    faults = [_picture_fault(record) for record in records]
    pairs = list(zip(records, faults, strict=True))
    bad += [BadSample(f"sample {record['id']}", fault) for record, fault in pairs if fault is not None]
    return [record for record, fault in pairs if fault is None]


def asked_pictures(records: Sequence[Mapping]) -> list[str]:
    """The pictures that records name, each once, in order."""
    return list(dict.fromkeys(record["image"] for record in records if record.get("image")))


def _picture_fault(record: Mapping) -> str | None:
    """What is wrong with a record's picture or its mark: there is one in a question, or there is neither."""
    if not isinstance(record.get("image") or "", str):
        return "'image' must name one picture; samples with several pictures cannot be used"
    turns = record["conversations"]
    num_marks = sum(turn["value"].count(IMAGE) for turn in turns)
    if num_marks != (1 if record.get("image") else 0):
        return f"{num_marks} '{IMAGE}' marks for {'one picture' if record.get('image') else 'no picture'}"
    if any(IMAGE in turn["value"] for turn in turns if turn["from"] != "human"):
        return f"its '{IMAGE}' mark stands outside the questions"
    return None


def _arrays(kept: Sequence[tuple[Mapping, Encoded]], places: Mapping[str, int], image_id: int) -> Arrays:
    ids = [sample.input_ids for _, sample in kept]
    masks = [sample.labels != IGNORE for _, sample in kept]
    marks = [np.flatnonzero(each == image_id) for each in ids]
    values = {
        "input_ids": np.concatenate([np.empty(0, np.int32), *ids]),
        "is_supervised": np.concatenate([np.empty(0, np.bool_), *masks]),
        "lengths": [len(each) for each in ids],
        "marks": [places[0] if len(places) else -1 for places in marks],
        "firsts": [first_supervised(sample) for _, sample in kept],
        "pictures": [places[record["image"]] if record.get("image") else -1 for record, _ in kept],
        "digests": [_digest(record) for record, _ in kept],
    }
    arrays = {name: np.array(value, dtype=_ARRAYS[name]) for name, value in values.items()}
    return arrays | _text_arrays("name", [str(record["id"]) for record, _ in kept])


def _digest(record: Mapping) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).digest()[:16]


def _text_arrays(name: str, texts: Sequence[str] | Mapping[str, int]) -> Arrays:
    data = [text.encode() for text in texts]
    lengths = np.array([len(each) for each in data], np.int32)
    return {f"{name}_bytes": np.frombuffer(b"".join(data), np.uint8), f"{name}_lengths": lengths}
