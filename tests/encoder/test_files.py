"""A file is whole or not there, whoever writes it at once, and a killed writer leaves nothing for ever."""

import os
import subprocess
import sys
import threading

import pytest

from encoder.runtime import files, stage


def test_equal_process_ids_and_threads_never_share_a_temporary_name(tmp_path, monkeypatch):
    """Ranks on several nodes can have equal process ids: named by these alone, every write failed."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path, names, failed = tmp_path / "DONE.json", set(), []
    together = threading.Barrier(8)

    def write():
        try:
            for _ in range(20):
                with files.replacing(path) as temporary:
                    names.add(temporary.name)
                    temporary.write_text("{}")
                    together.wait()  # everyone holds a temporary file before anyone renames it
        except (OSError, threading.BrokenBarrierError) as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed and len(names) == 160 and os.listdir(tmp_path) == ["DONE.json"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_what_a_killed_writer_left_goes_at_the_next_start_and_a_living_ones_stays(tmp_path):
    killed = (
        "import os, pathlib, signal, sys\n"
        "from encoder.runtime.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1]) / 'checkpoint.pt') as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(".checkpoint.pt.*.tmp"))) == 1
    elsewhere = tmp_path / ".checkpoint.pt.another-node.1.0123456789abcdef.tmp"
    elsewhere.write_text("")
    with files.replacing(tmp_path / "index.json") as own:
        own.write_text("{}")
        stage.make_writable(tmp_path)
        assert own.is_file() and elsewhere.is_file()
        assert not [path for path in tmp_path.glob(".checkpoint.pt.*.tmp") if path != elsewhere]


WRITES = """
import sys, torch
from pathlib import Path
from encoder.models.shapes import ViTShape
from encoder.models.vit import ViTEncoder
from encoder.release import export_release
from encoder.runtime import checkpoint
folder = Path(sys.argv[1])
vit = ViTEncoder(ViTShape(image_size=4, width=64, layers=1, head_width=16, embed_dim=16))
for write in (
    lambda: checkpoint.save(folder / "a.pt", {"a": torch.zeros(100_000)}),
    lambda: checkpoint.save_tensors(folder / "a.safetensors", {"a": torch.zeros(100_000)}),
    lambda: export_release(vit, folder),
):
    try:
        write()
    except OSError as error:
        print(error)
"""


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing(tmp_path):
    limited = f"ulimit -f 100; exec {sys.executable} -c '{WRITES}' {tmp_path}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    for line, name in zip(lines, ("a.pt", "a.safetensors", "open_clip_pytorch_model.bin"), strict=True):
        assert f"{tmp_path / name} cannot be written; make room" in line
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_words_is_said_by_its_kind():
    assert stage.first_line(ValueError()) == "ValueError"
    assert stage.first_line(OSError("one\ntwo")) == "one"
