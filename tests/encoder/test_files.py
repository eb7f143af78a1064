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
