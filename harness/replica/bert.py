"""BERT's uncased vocabulary in its hub folder: the words of an encoder's text tower and captioner.

Source: google-bert/bert-base-uncased on the hub (vocab.txt, tokenizer_config.json, config.json); reference
sheet "Official OpenVision repository", Sec. 2.4: [PAD] is 0, the spare [unused0] and [unused1] are 1 and 2
(OpenVision's [bos] and [eos]), [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103. Published: 30,522 lines. Here the
first 999 are the same, then come characters and the words of Scenes.
"""

import string
from pathlib import Path

from encoder.data.scenes.text import VOCABULARY
from encoder.runtime.stage import write_json
from harness.replica.config import ReplicaConfig
from harness.replica.mark import README, readme

FOLDER = "bert-base-uncased"
_NUM_SPARE = 994


def write(root: Path, config: ReplicaConfig) -> str:
    """The folder without weights: nothing here reads them. The same for every seed."""
    folder = root / FOLDER
    folder.mkdir()
    words = vocabulary()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    write_json(folder / "config.json", {
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": len(words),
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    })  # fmt: skip
    (folder / README).write_text(readme("BERT's vocabulary", "hub: google-bert/bert-base-uncased"))
    return f"{len(words)} words"


def vocabulary() -> list[str]:
    """The lines of vocab.txt."""
    spare = [f"[unused{number}]" for number in range(_NUM_SPARE)]
    marks = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    pieces = [f"##{letter}" for letter in string.ascii_lowercase + string.digits]
    known = ["[PAD]", *spare[:99], *marks, *spare[99:], *characters, *pieces]
    return known + sorted({word for word in VOCABULARY if word.isascii()} - {*known})
