"""BERT's WordPiece on a vocabulary file, against transformers' own tokenizer, and OpenVision's marks."""

import pytest
from transformers import BertTokenizer

from encoder.data.tokenizer import Tokenizer

WORDS = ["[PAD]", "[unused0]", "[unused1]", *(f"[unused{i}]" for i in range(2, 99)), "[UNK]", "[CLS]"]
WORDS += ["[SEP]", "[MASK]", *"!.,'[]-?", *"abcdefghijklmnopqrstuvwxyz0123456789", "中", "the", "cafe", "cat"]
WORDS += [*(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "##s", "##ing", "sit", "stop", "cls"]
TEXTS = [
    "The cats sit.", "CAFÉ, caf\u00e9!", "it's sitting-stopping?", "中 the中cat", "  tabs\tand\nlines ", "",
    "[CLS] the", "a" * 120, "\u00fcber nai\u0308ve", "🙂 cat",
]  # fmt: skip


@pytest.fixture
def vocab(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(WORDS)) + "\n", encoding="utf-8")
    return tmp_path


def test_pieces_are_those_of_transformers(vocab):
    ours, theirs = Tokenizer(str(vocab)), BertTokenizer.from_pretrained(vocab)
    assert (ours.pad, ours.bos, ours.eos, ours.unk, ours.cls) == (0, 1, 2, 99 + 1, 101)
    plain = [text for text in TEXTS if "[CLS]" not in text]
    wanted = [theirs(text, add_special_tokens=False)["input_ids"] for text in plain]
    assert ours._pieces(plain) == wanted


def test_a_special_name_is_spelled_out_and_an_ellipsis_is_three_stops(vocab):
    tokenizer = Tokenizer(str(vocab))
    ids = tokenizer._pieces(["[CLS] the cat\u2026"])[0]
    assert [tokenizer.words[i] for i in ids] == ["[", "cls", "]", "the", "cat", ".", ".", "."]


def test_labels_have_openvisions_marks_at_every_length(vocab):
    tokenizer = Tokenizer(str(vocab))
    short, long = "the cat", "cat " * 200
    contrastive = tokenizer.contrastive_ids([short, long], 80)
    the, cat = (tokenizer.vocab[word] for word in ("the", "cat"))
    assert contrastive[0].tolist() == [1, the, cat, 2, *[0] * 75, 101]
    assert contrastive[1].tolist() == [1, *[cat] * 77, 2, 101]  # index 78 is [eos], 79 [CLS]
    captions = tokenizer.caption_ids([short, long], 128)
    assert captions[0, :5].tolist() == [1, the, cat, 2, 0]
    targets = captions[:, 1:]
    assert (targets[0] != 0).sum() == 3  # [eos] counts, pads do not
    assert (targets[1] != 0).sum() == 127 and captions[1, -1] == cat  # a full caption is cut without [eos]


def test_a_word_unknown_to_scenes_is_refused_by_name():
    with pytest.raises(ValueError, match="not words of Scenes: zebra"):
        Tokenizer("scenes").contrastive_ids(["a zebra"], 8)


def test_a_cased_vocabulary_of_many_languages_keeps_its_ids_and_its_case(tmp_path):
    """As in bert-base-multilingual-cased: 119,547 lines, spare entries from 1 on; a word is a line end."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028"]
    words += ["Paris", "paris", "caf\u00e9", "cafe", "."]
    words += [f"w{i}" for i in range(119_547 - len(words) - 1)] + ["\u732b"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    ours, theirs = Tokenizer(str(tmp_path)), BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    assert (ours.vocab_size, ours.bos, ours.eos, ours.vocab["\u732b"]) == (119_547, 1, 2, 119_546)
    text = "Paris paris caf\u00e9 \u732b w119000."
    assert ours._pieces([text]) == [theirs(text, add_special_tokens=False)["input_ids"]]
    assert ours.decode(ours.caption_ids([text], 16)[0].tolist()) == "Paris paris caf\u00e9 \u732b w119000 ."
