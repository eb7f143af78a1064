"""The store of frozen tokens: what is written comes back, mapped, not read; what does not fit is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encoder.data.account import BadSample, TooManyBadSamples
from encoder.runtime.checkpoint import load_tensors, save_tensors
from encoder.runtime.stage import write_json
from encoder.token_store import Encoded, StreamingMoments, TokenStore, TokenWriter

NUM, NUM_TOKENS, WIDTH = 11, 4, 6
ABOUT = {"encoder": "e", "features": "last", "fingerprint": "f", "grid": [2, 2], "width": WIDTH}


def draw(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, those of the mirror images, and labels of NUM pictures."""
    generator = torch.Generator().manual_seed(0)
    tokens, flipped = (3 + torch.randn(2, NUM, NUM_TOKENS, WIDTH, generator=generator)).to(dtype)
    return tokens, flipped, torch.tensor([0, -1, *range(NUM - 2)])


def write(folder: Path, size: int, *, flips: bool = True, moments: bool = False) -> TokenWriter:
    """The pictures in shards of `size`; the writer's last call is left to the test."""
    tokens, flipped, labels = draw()
    parts = [range(first, min(first + size, NUM)) for first in range(0, NUM, size)]
    writer = TokenWriter(folder, {**ABOUT, "flips": flips}, [f"{part}" for part in parts], moments)
    for number, part in enumerate(parts):
        rows = slice(part.start, part.stop)
        writer.write(
            number,
            Encoded(
                keys=[f"p{i}" for i in part],
                tokens=tokens[rows],
                flipped=flipped[rows] if flips else None,
                labels=labels[rows],
                skipped=[BadSample("bad.png", "broken")] if number == 0 else [],
            ),
        )
    return writer


@pytest.mark.parametrize(("size", "files"), [(11, ["tokens"]), (4, ["00000", "00001", "00002"])])
def test_what_is_written_comes_back_from_one_shard_and_from_three(tmp_path, size, files):
    write(tmp_path, size).finish(max_bad_fraction=0.1)
    assert sorted(path.stem for path in tmp_path.rglob("*.safetensors")) == sorted(files)
    tokens, flipped, labels = draw()
    store = TokenStore(tmp_path)
    assert len(store) == NUM and store.keys == [f"p{i}" for i in range(NUM)] and "p11" not in store
    assert torch.equal(store.labels, labels) and store.labels.dtype == torch.int64
    assert store.origin == {"encoder": "e", "features": "last", "fingerprint": "f"}
    indices = torch.tensor([10, 0, 3, 4, 3, 7, 8])
    mirrored = torch.tensor([True, False, True, True, False, False, True])
    assert torch.equal(store.rows(indices), tokens[indices])
    expected = torch.where(mirrored[:, None, None], flipped[indices], tokens[indices])
    assert torch.equal(store.rows(indices, mirrored), expected)
    assert torch.equal(store["p7"], tokens[7]) and torch.equal(store.named(["p9", "p2"]), tokens[[9, 2]])
    assert store.rows(torch.tensor([], dtype=torch.long)).shape == (0, NUM_TOKENS, WIDTH)
    for wrong in (-1, NUM):
        with pytest.raises(IndexError, match="holds 11 pictures"):
            store.rows(torch.tensor([wrong]))
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["skipped"] == ["bad.png: broken"] and index["grid"] == [2, 2]
    again = pickle.loads(pickle.dumps(store))  # as a worker process gets it
    assert torch.equal(again.rows(indices), tokens[indices]) and len(pickle.dumps(store)) < 500


def test_one_shard_is_a_plain_file_of_tokens_and_labels(tmp_path):
    write(tmp_path, NUM, flips=False).finish(max_bad_fraction=0.1)
    tokens, _, labels = draw()
    content = load_tensors(tmp_path / "tokens.safetensors")
    assert content.keys() == {"tokens", "labels"}
    assert torch.equal(content["tokens"], tokens) and torch.equal(content["labels"], labels)
    with pytest.raises(ValueError, match="holds no mirror images"):
        TokenStore(tmp_path).rows(torch.tensor([0]), torch.tensor([False]))


def test_folders_from_before_there_were_shards_are_read(tmp_path):
    tokens, _, labels = draw()
    save_tensors(tmp_path / "tokens.safetensors", {"tokens": tokens, "labels": labels})
    write_json(tmp_path / "index.json", {**ABOUT, "skipped": [], "keys": [str(i) for i in range(NUM)]})
    assert torch.equal(TokenStore(tmp_path)["10"], tokens[10])


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_moments_are_the_two_pass_ones_whether_kept_or_counted(tmp_path, flips, kept):
    write(tmp_path, 4, flips=flips, moments=kept).finish(max_bad_fraction=0.1)
    tokens, flipped, _ = draw()
    everything = torch.cat([tokens, flipped] if flips else [tokens]).double()
    moments = TokenStore(tmp_path).moments()
    assert moments.count == len(everything)
    torch.testing.assert_close(moments.mean, everything.mean(0), rtol=1e-13, atol=0)
    variance = everything.var(0, correction=0)
    torch.testing.assert_close(moments.squares / moments.count, variance, rtol=1e-12, atol=0)


def mapped_files(tensor: Tensor) -> list[str]:
    """Files that are mapped where the tensor lies, by the system's own account (Linux)."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            found.append(line.split(maxsplit=5)[5] if len(line.split()) > 5 else "")
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_tokens_are_mapped_and_not_copied(tmp_path):
    write(tmp_path, 4).finish(max_bad_fraction=0.1)
    for number, shard in enumerate(TokenStore(tmp_path).shards):
        path = str(tmp_path / "shards" / f"{number:05d}.safetensors")
        assert mapped_files(shard.tokens) == mapped_files(shard.flipped) == [path]
    assert mapped_files(torch.zeros(1)) != [path]


def test_a_shard_counts_as_there_only_if_it_is_whole_and_of_the_same_making(tmp_path):
    writer = write(tmp_path, 4)
    assert writer.missing() == []
    about = {**ABOUT, "flips": True}
    others = [
        TokenWriter(tmp_path, {**about, "fingerprint": "other"}, writer.sources),
        TokenWriter(tmp_path, about, ["other"] * 3),
        TokenWriter(tmp_path, about, writer.sources, True),
    ]
    assert [other.missing() for other in others] == [[0, 1, 2]] * 3
    path = writer.path(1)
    path.write_bytes(path.read_bytes()[:-1])
    assert writer.missing() == [1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard not found: .*00001"):
        writer.finish(max_bad_fraction=0.1)


def test_damage_is_one_line_that_names_the_file_and_the_remedy(tmp_path):
    write(tmp_path, 4).finish(max_bad_fraction=0.1)
    path = tmp_path / "shards" / "00002.safetensors"
    whole, remedy = path.read_bytes(), rf"delete {tmp_path}/DONE\.json and run its stage again"
    for damaged in (b"", b"not a shard", whole[:-1], whole[:40]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"^shard damaged: {path} \(.*\); {remedy}.*$"):
            TokenStore(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^shard not found: {path}; {remedy}"):
        TokenStore(tmp_path)
    path.write_bytes((tmp_path / "shards" / "00001.safetensors").read_bytes())  # 4 pictures, not 3
    with pytest.raises(ValueError, match=r"00002.*\(4, 4, 6\).*expected \(3, 4, 6\)"):
        TokenStore(tmp_path)
    for text, reason in (
        ("{", "not an index"),
        ("[]", "not an index"),
        ("{}", "not an index"),
        ('{"keys": ["a"], "shards": [2]}', "names 1 pictures, its shards hold 2"),
    ):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=rf"index\.json.*{reason}"):
            TokenStore(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokens in"):
        TokenStore(tmp_path)


def test_too_many_skipped_pictures_stop_it_before_the_index_is_written(tmp_path):
    writer = write(tmp_path, 4)
    with pytest.raises(TooManyBadSamples, match=r"1 of 12 pictures .*bad\.png: broken"):
        writer.finish(max_bad_fraction=0.05)
    assert not (tmp_path / "index.json").exists()


def far_data() -> Tensor:
    """A mean far from 0 beside a small spread: sums of squares would lose it."""
    return 1000 + torch.randn(37, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def streamed(data, batch_size):
    moments = StreamingMoments()
    for batch in data.split(batch_size):
        moments.update(batch)
    return moments


@pytest.mark.parametrize("batch_size", [1, 2, 7, 36, 37, 100])
def test_streaming_statistics_equal_the_two_pass_result_for_every_batch_size(batch_size):
    data = far_data()
    moments = streamed(data, batch_size)
    torch.testing.assert_close(moments.mean, data.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.squares / moments.count, data.var(0, correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("cut", [0, 1, 20, 37])
def test_accumulators_of_two_ranks_merge_to_that_of_one(cut):
    data = far_data()
    merged = streamed(data[:cut], 4) if cut else StreamingMoments()
    merged.merge(streamed(data[cut:], 5) if cut < len(data) else StreamingMoments())
    whole = streamed(data, 37)
    assert merged.count == 37
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-9, atol=0)
