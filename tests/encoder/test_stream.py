"""Streams: every sample once an epoch, the same whoever reads, exact after a stop, bad samples skipped."""

import functools
import http.server
import io
import json
import os
import random
import signal
import tarfile
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from encoder.data import stream
from encoder.data.account import TooManyBadSamples
from encoder.data.feed import MicroBatches, StreamFeed, killed_readers_named, num_bad
from encoder.data.options import StreamConfig
from encoder.data.tokenizer import Tokenizer
from encoder.runtime.ahead import ReadAhead
from encoder.runtime.config import load


def write_shards(folder, num_shards=4, per_shard=6, bad=(), start=0):
    """Flat pictures of value = their number; `bad` numbers have broken bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * per_shard, (shard + 1) * per_shard):
                buffer = io.BytesIO()
                Image.fromarray(np.full((8, 12, 3), start + i, np.uint8)).save(buffer, "PNG")
                picture = b"broken" if i in bad else buffer.getvalue()
                record = {"org_caption": f"red {i}", "re_caption": "a ball. a cup. a tree."}
                for suffix, data in (("png", picture), ("json", json.dumps(record).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def config(*sources, **changes) -> StreamConfig:
    fixed = {"image_size": 8, "num_lanes": 2, "shuffle_window": 4, "retry_seconds": 0.0, "retries": 2}
    values = {"sources": [{"shards": str(each)} for each in sources], **fixed, **changes}
    return load(StreamConfig, values)


def lane_values(chosen, lane=0, count=12, seed=0, state=None):
    reader = stream.Lane(lane, chosen, stream.find_stream_shards(chosen), seed)
    if state is not None:
        reader.load_state(json.loads(json.dumps(state)))
    rows = iter(reader)
    return [int(next(rows).pixels[0, 0, 0]) for _ in range(count)], reader


def feed(chosen, first=0, count=1, num_micro_batches=1, batch_size=8, state=None, bad_file=None):
    own = MicroBatches(
        batch_size=batch_size, num_micro_batches=num_micro_batches, first=first, count=count,
        num_pixels=batch_size, with_sentence=True,
    )  # fmt: skip
    made = StreamFeed(chosen, own, Tokenizer("scenes"), text_length=8, caption_length=12, seed=3,
                      keep_all_pixels=True, bad_file=bad_file)  # fmt: skip
    if state is not None:
        made.load_state(state)
    return made


def seen(made, num_steps, first=0) -> list[list[float]]:
    batches = [made.micro_batches(step) for step in range(first, first + num_steps)]
    return [[round(255 * p[0, 0, 0].item()) for each in step for p in each.pixels] for step in batches]


def test_the_lanes_together_give_every_sample_once_an_epoch_in_another_order_each(tmp_path):
    chosen = config(write_shards(tmp_path))
    (one, _), (two, _) = lane_values(chosen, 0, 24), lane_values(chosen, 1, 24)
    for epoch in (slice(0, 12), slice(12, 24)):
        assert sorted(one[epoch] + two[epoch]) == list(range(24))
    assert one[:12] != one[12:] and one[:12] != sorted(one[:12])


def test_a_lane_goes_on_from_any_place_with_the_very_next_sample(tmp_path):
    chosen = config(write_shards(tmp_path, bad={2, 3, 17}), max_bad_fraction=0.5)
    whole, last = lane_values(chosen, count=30)
    for stop in range(0, 26, 3):
        first, reader = lane_values(chosen, count=stop)
        rest, resumed = lane_values(chosen, count=30 - stop, state=reader.state())
        assert first + rest == whole
        assert resumed.state() == last.state()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_ranks_see_the_halves_of_what_one_sees(tmp_path, num_workers):
    chosen = config(write_shards(tmp_path, num_shards=8), num_lanes=4, num_workers=num_workers)
    one = seen(feed(config(tmp_path, num_lanes=4)), 5)
    halves = [seen(feed(chosen, rank, 1, 2), 5) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == one
    first, second = feed(chosen, 0, 1, 2), feed(chosen, 1, 1, 2)
    seen(first, 1), seen(second, 1)
    both = first.state() | second.state()
    second.load_state(both)  # a checkpoint has everybody's lanes; a process keeps and reports its own
    assert set(second.state()) == {"2", "3"} and set(both) == {"0", "1", "2", "3"}
    micro = feed(config(tmp_path, num_lanes=4), 0, 4, 4)
    assert seen(micro, 5) == one and [len(each.pixels) for each in micro.micro_batches(5)] == [2, 2, 2, 2]


def test_a_feed_goes_on_from_its_state_whatever_its_workers_had_read_ahead(tmp_path):
    chosen = config(write_shards(tmp_path, bad={1}), num_workers=2, max_bad_fraction=0.5)
    made = feed(chosen, bad_file=tmp_path / "bad.jsonl")
    before, state = seen(made, 3), made.state()
    after = seen(made, 4)
    assert seen(feed(config(tmp_path, max_bad_fraction=0.5), state=state), 4) == after
    assert num_bad(made.state()) == len((tmp_path / "bad.jsonl").read_text().splitlines()) >= 1
    assert "0001" in (tmp_path / "bad.jsonl").read_text()
    assert before != after[:3]


def test_a_killed_reading_process_is_named_and_the_next_start_goes_on(tmp_path):
    chosen = config(write_shards(tmp_path, num_shards=8), num_workers=1)
    made = feed(chosen)
    first = seen(made, 2)
    state = made.state()
    with pytest.raises(OSError, match="a reading process was killed"), killed_readers_named():
        os.kill(made._iterator._workers[0].pid, signal.SIGKILL)
        seen(made, 50)
    whole = seen(feed(config(tmp_path)), 4)
    assert first + seen(feed(chosen, state=state), 2) == whole


def test_what_a_reading_process_could_not_do_is_said_in_its_own_words(tmp_path):
    chosen = config(write_shards(tmp_path, bad=range(24)), num_workers=1, max_bad_fraction=0.01)
    with pytest.raises(TooManyBadSamples, match=r"^\d+ of \d+ samples of lane \d are unusable") as stopped:
        seen(feed(chosen), 8)
    assert len(str(stopped.value).splitlines()) == 1


def test_texts_come_as_openvision_trains_on_them(tmp_path):
    batch = feed(config(write_shards(tmp_path))).micro_batches(0)[0]
    tokenizer = Tokenizer("scenes")
    alt, sentence = batch.text_ids
    assert {tokenizer.decode(ids.tolist()) for ids in sentence} <= {"a ball", "a cup", "a tree"}
    assert alt[0, 1] == tokenizer.vocab["red"] and (alt[:, -1] == tokenizer.cls).all()
    assert tokenizer.decode(batch.caption_ids[0].tolist()).startswith("a ball")


def test_a_mixture_keeps_its_shares(tmp_path):
    write_shards(tmp_path / "a", start=0), write_shards(tmp_path / "b", start=100)
    sources = [{"shards": str(tmp_path / "a"), "weight": 3.0}, {"shards": str(tmp_path / "b")}]
    values, _ = lane_values(config(sources=sources), count=400)
    assert 0.68 < sum(value < 100 for value in values) / 400 < 0.82


def test_bad_samples_are_skipped_up_to_a_fraction_and_a_cut_shard_is_named(tmp_path, monkeypatch):
    write_shards(tmp_path, num_shards=2, bad={0, 1, 2, 3})
    monkeypatch.setattr("encoder.data.account.PATIENCE", 10)
    with pytest.raises(TooManyBadSamples, match="more than the allowed 10"):
        lane_values(config(tmp_path, max_bad_fraction=0.1, num_lanes=1), count=30)
    shard = tmp_path / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:8000])
    _, reader = lane_values(config(tmp_path, max_bad_fraction=1.0, num_lanes=1), count=5)
    assert "00001.tar:*: shard" in " ".join(map(str, reader.bad))


class Server(http.server.SimpleHTTPRequestHandler):
    """Fails every third request."""

    requests = 0

    def do_GET(self):
        Server.requests += 1
        if Server.requests % 3 == 0:
            return self.send_error(503)
        return super().do_GET()

    def log_message(self, *arguments):
        pass


@contextmanager
def served(handler, folder):
    """The address of a folder's four shards."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{{00000..00003}}.tar"
        server.shutdown()


def test_http_is_read_like_a_folder_and_failures_are_tried_again(tmp_path):
    write_shards(tmp_path)
    with served(Server, tmp_path) as url:
        assert lane_values(config(url), count=12)[0] == lane_values(config(tmp_path), count=12)[0]
    with pytest.raises(OSError, match="cannot be read after 3 attempts"):
        lane_values(config(url), count=1)
    gone = config(f"{tmp_path}/{{00002..00005}}.tar")
    with pytest.raises(FileNotFoundError, match=r"shard not found: .*/0000[45].tar"):
        lane_values(gone, count=40)


def test_latents_come_from_the_shard_and_broken_ones_are_skipped(tmp_path):
    chosen = config(tmp_path, latents=True)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    raw = {"png": buffer.getvalue(), "txt": b"a", "json": b"{}", "__key__": "0", "__url__": "0.tar"}
    z_vae = torch.randn(16, 1, 1).bfloat16()
    stored = safetensors.torch.save({"z_vae": z_vae})
    row = stream.decode(raw | {stream.LATENTS: stored}, chosen, random.Random(0))
    assert torch.equal(row.z_vae, z_vae)
    for broken in ({}, {stream.LATENTS: stored[:20]}):
        with pytest.raises(ValueError, match=r"latents|encoder\.cache"):
            stream.decode(raw | broken, chosen, random.Random(0))


def test_crops_are_square_and_the_middle_is_the_middle():
    ramp = np.zeros((10, 30, 3), np.uint8)
    ramp[:, 10:20] = 200
    picture = Image.fromarray(ramp)
    crops = {how: stream.crop(picture, how, 8, (0.4, 1.0), random.Random(0))
             for how in ("squash", "centre", "random")}  # fmt: skip
    assert {each.size for each in crops.values()} == {(8, 8)}
    assert np.asarray(crops["centre"])[:, 2:6].min() > 190
    assert 0 < np.asarray(crops["squash"])[:, 0].min() + 1 < 50


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_lanes": 5}, "cannot feed 5 lanes"), ({"num_workers": 3}, "must divide the 2 lanes"),
    ({"num_lanes": 3}, "must divide batch_size 8")])  # fmt: skip
def test_lanes_that_do_not_divide_are_refused(tmp_path, changes, message):
    chosen = config(write_shards(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        feed(chosen, batch_size=10 if changes.get("num_lanes") == 5 else 8).micro_batches(0)


def test_missing_shards_and_empty_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards at"):
        stream.expand_shards(f"{tmp_path}/*.tar")
    with pytest.raises(ValueError, match="sources is empty"):
        config()
    with pytest.raises(ValueError, match=r"shards nowhere://x.tar cannot be read: .*nowhere"):
        stream.expand_shards("nowhere://x.tar")


def test_reading_ahead_changes_no_sample_and_no_place(tmp_path):
    chosen = config(write_shards(tmp_path, bad={2, 9}), max_bad_fraction=0.5, prefetch=0)
    values, reader = lane_values(chosen, count=40)
    for prefetch in (1, 3):
        ahead = config(tmp_path, max_bad_fraction=0.5, prefetch=prefetch)
        assert lane_values(ahead, count=40)[0] == values
        first, stopped = lane_values(ahead, count=17)
        rest, resumed = lane_values(ahead, count=23, state=stopped.state())
        assert first + rest == values and resumed.state() == reader.state()


def test_windows_are_read_while_the_one_before_is_used(tmp_path):
    started = [threading.Event() for _ in range(4)]

    def windows():
        for number, event in enumerate(started):
            event.set()
            yield number
        raise OSError("the fifth")

    ahead = ReadAhead(windows(), 1)
    assert next(ahead) == 0
    assert started[1].wait(60)  # nobody asked for it
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(OSError, match="the fifth"):
            next(ahead)


def test_a_reader_that_is_given_up_ends_its_thread():
    before = set(threading.enumerate())
    ahead = ReadAhead(iter(range(100)), 2)
    assert next(ahead) == 0
    (thread,) = set(threading.enumerate()) - before
    del ahead
    thread.join(60)
    assert not thread.is_alive()


class Gone(Server):
    """Never has shard 1."""

    def do_GET(self):
        if self.path.endswith("00001.tar"):
            return self.send_error(503)
        return http.server.SimpleHTTPRequestHandler.do_GET(self)


def test_a_remote_shard_that_stays_away_is_named_and_costs_its_own_samples_alone(tmp_path):
    write_shards(tmp_path)
    with served(Gone, tmp_path) as url:
        chosen = config(url, num_lanes=1)
        values, reader = lane_values(chosen, count=36)  # two epochs of what is left
        assert sorted(values) == sorted([i for i in range(24) if i // 6 != 1] * 2)
        assert {bad.name for bad in reader.bad} == {"00001.tar:*"}
        assert "cannot be read after 3 attempts" in reader.bad[0].reason
        first, stopped = lane_values(chosen, count=20)
        assert first + lane_values(chosen, count=16, state=stopped.state())[0] == values
        with pytest.raises(OSError, match=r"00001\.tar .*max_lost_shards allows 0"):
            lane_values(config(url, num_lanes=1, max_lost_shards=0), count=36)
