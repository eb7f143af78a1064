"""Texts to ids in OpenVision's layout, and the batch that a step sees."""

import numpy as np
import pytest
import torch

from encoder.data.batch import TrainingSet, sentences
from encoder.data.tokenizer import Tokenizer

WORDS = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "a", "red", "ball", "##s", ".", "cafe"]


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(str(tmp_path))


def test_contrastive_ids_have_cls_last_and_are_closed_by_eos(bert):
    pad, bos, eos, unk, cls, a, red, ball, s, dot, cafe = range(11)
    ids = bert.contrastive_ids(["A red balls.", "Café zzz", "a " * 20], 9)
    assert ids.tolist() == [
        [bos, a, red, ball, s, dot, eos, pad, cls],
        [bos, cafe, unk, eos, pad, pad, pad, pad, cls],
        [bos, a, a, a, a, a, a, eos, cls],
    ]


def test_caption_ids_end_with_eos_unless_cut(bert):
    pad, bos, eos, _, _, a = range(6)
    assert bert.caption_ids(["a a", "a a a a a a"], 6).tolist() == [
        [bos, a, a, eos, pad, pad],
        [bos, a, a, a, a, a],
    ]
    assert bert.decode([1, 5, 6, 7, 8, 2, 9]) == "a red balls"


def test_the_scenes_vocabulary_is_closed_over_its_own_texts():
    from encoder.data.scenes.compose import make_scene
    from encoder.data.scenes.text import org_caption, re_caption

    tokenizer = Tokenizer("scenes")
    scenes = [make_scene(0, index, "train") for index in range(50)]
    texts = [*map(org_caption, scenes), *map(re_caption, scenes)]
    assert tokenizer.unk not in tokenizer.caption_ids(texts, 128)


def test_a_vocabulary_without_specials_or_without_a_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        Tokenizer(str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
        Tokenizer(str(tmp_path))


def test_sentences_split_at_full_stops_and_fall_back_to_the_alt_text():
    assert sentences("one. two! three...", "alt") == ["one", "two", "three"]
    assert sentences(" . ", "alt") == ["alt"]


def test_a_batch_holds_one_own_sentence_of_each_sample_and_only_the_pixels_asked_for(bert):
    records = [{"org_caption": "a", "re_caption": "red. ball."}, {"txt": "cafe", "re_caption": "a red"}]
    images = torch.as_tensor(np.stack([np.full((8, 8, 3), 255 * i, np.uint8) for i in range(2)]))
    samples = TrainingSet(images, records, bert, text_length=5, caption_length=9)
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        stored = samples.batch(torch.tensor([1, 0]), generator, num_pixels=1, with_sentence=True)
        batch = stored.to("cpu")
        alt, sentence = batch.text_ids
        assert alt[:, 1].tolist() == [10, 5]  # cafe, a
        assert sentence[0].tolist() == [1, 5, 6, 2, 4]
        seen.add(sentence[1, 1].item())
    assert seen == {6, 7}  # red or ball
    assert stored.pixels.shape == (1, 8, 8, 3) and stored.pixels.dtype == torch.uint8
    assert batch.pixels.shape == (1, 3, 8, 8) and batch.pixels.eq(1).all()
    assert batch.caption_ids.shape == (2, 6)  # [bos] red . ball . [eos]: padding beyond the longest is cut


@pytest.mark.parametrize("size", [32_768, 32_769, 119_547])
def test_the_ids_of_a_large_vocabulary_survive(tmp_path, size):
    words = [*WORDS, *(f"w{i}" for i in range(size - len(WORDS)))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    last = words[-1]
    samples = TrainingSet(
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        [{"org_caption": last, "re_caption": f"a {last}."}],
        Tokenizer(str(tmp_path)),
        text_length=6,
        caption_length=6,
    )
    batch = samples.batch(torch.tensor([0]), torch.Generator(), num_pixels=1, with_sentence=True)
    assert [ids[0].tolist() for ids in batch.text_ids] == [
        [1, size - 1, 2, 0, 0, 4],
        [1, 5, size - 1, 2, 0, 4],
    ]
    assert batch.caption_ids[0].tolist() == [1, 5, size - 1, 9, 2]
