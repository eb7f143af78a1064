"""A language model's tokenizer from its folder, also one with a sentencepiece model and no tokenizer.json."""

import sys
from pathlib import Path

import sentencepiece
from google.protobuf.runtime_version import VersionError
from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id."""
    _describe_sentencepiece_files()
    return AutoTokenizer.from_pretrained(source)


def _describe_sentencepiece_files() -> None:
    """Let transformers read tokenizer.model whatever protobuf is there.

    sentencepiece 0.2.3 describes its files for protobuf 7 alone, and wandb 0.25 refuses that version;
    transformers ships the same description for every protobuf, but asks for sentencepiece's first.
    """
    name = "sentencepiece.sentencepiece_model_pb2"
    try:
        __import__(name)
    except VersionError:
        from transformers.utils import sentencepiece_model_pb2_new

        sys.modules[name] = sentencepiece_model_pb2_new
        sentencepiece.sentencepiece_model_pb2 = sentencepiece_model_pb2_new
