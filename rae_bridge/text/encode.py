"""Stage: both captions of every picture of a split, encoded once by a frozen text encoder.

`python -m rae_bridge.text.encode <config.yaml> <out_dir>` writes out_dir/texts.safetensors and texts.json:
the states of every different text, trimmed to its real tokens (256 padded ones of 1024 numbers would be
0.5 MB a caption), those of the empty text, and for each picture's key the numbers of its short and its dense
caption. Pictures are not decoded. States are gathered in memory: those of 100,000 captions of 50 tokens of
1024 numbers take 10 GB.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from encoder.data.account import Account
from encoder.data.captions import Texts, choose_texts
from encoder.data.options import CaptionKeys
from encoder.data.shards import find_shards, read_record
from encoder.data.tars import KEY, OpenShard
from encoder.runtime.config import ROOT
from encoder.runtime.device import require_device
from encoder.runtime.stage import main, progress
from rae_bridge.text.bank import TextBank
from rae_bridge.text.config import EncodeTextConfig
from rae_bridge.text.encoders import load_text_encoder

MAX_BAD_FRACTION = 0.01


def read_captions(
    folder: Path | str, split: str, limit: int | None = None, captions: CaptionKeys | None = None
) -> Iterator[tuple[str, Texts]]:
    """Key and texts of each sample of a split's shards, the first `limit` readable ones.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: over 1 % of the samples have no text.
    """
    keys, account, num = captions or CaptionKeys(), Account(MAX_BAD_FRACTION), 0
    for shard in find_shards(folder, split):
        with closing(OpenShard(str(shard))) as samples:
            for raw in samples:
                if num == limit:
                    return
                try:
                    texts = choose_texts(read_record(raw, keys), keys)
                except ValueError as error:
                    account.add_bad(f"{shard.name}:{raw[KEY]}", str(error))
                    continue
                account.add_good()
                num += 1
                yield raw[KEY], texts
    account.finish()


def run(config: EncodeTextConfig, out_dir: Path) -> dict:
    """Run the stage; see the module's docstring.

    Raises:
        FileNotFoundError, ValueError: there is no text, or the text encoder refuses.
    """
    device = str(require_device(config.device))
    model = load_text_encoder(config.text_encoder, config.max_length, device)
    progress(out_dir, 0, 1, "texts")  # marks the folder as begun with this config
    keys, short, dense, numbers = [], [], [], {}
    for key, texts in read_captions(ROOT / config.data, config.split, config.limit, config.captions):
        keys.append(key)
        short.append(numbers.setdefault(texts.alt, len(numbers)))
        dense.append(numbers.setdefault(texts.dense, len(numbers)))
    if not keys:
        raise ValueError(f"no captions in {config.data}/{config.split}")
    bank = TextBank.encode(list(numbers), model, config.dtype, config.batch_size)
    bank.save(out_dir, {"short": torch.tensor(short), "dense": torch.tensor(dense)}, {"keys": keys})
    return {
        "num_pictures": len(keys),
        "num_texts": bank.null,
        "num_tokens": len(bank.tokens),
        "longest": int((bank.ends - torch.cat([bank.ends.new_zeros(1), bank.ends[:-1]])).max()),
        "text_encoder": model.about,
    }


if __name__ == "__main__":
    main(EncodeTextConfig, run)
