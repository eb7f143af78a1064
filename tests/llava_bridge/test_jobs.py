"""Benchmarks over two processes (gloo), of which one fails where the others are not looking."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from encoder.runtime.config import ROOT
from encoder.runtime.distributed import end_together


@pytest.fixture(scope="module")
def seen() -> list[dict]:
    """What each case of jobs_process.py gave, in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("jobs_process.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(each.splitlines()[-1]) for each in said]


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_what_fails_in_one_process_fails_in_all_and_costs_the_others_nothing(place, seen):
    first, second = (each[place] for each in seen)
    assert first == second
    not_run, scores = first
    assert [*not_run] == ["B/score"] and "OSError: no data of B" in not_run["B/score"]
    assert scores == {name: {"answers": [f"{name} {i}" for i in range(4)]} for name in ("A", "C")}


def test_what_is_scored_is_the_first_processs_word(seen):
    found = [each["run_with_scores_of_the_first"] for each in seen]
    assert found == [[{}, ["A", "B", "C"]], [{}, ["B", "C"]]]


def test_answers_to_other_questions_are_not_taken_for_ones_own(seen):
    said = "the processes went apart: process 0 is in 'questions 0', process 1 is in 'questions 1'"
    assert [each["ask_other_questions"] for each in seen] == [said, said]


def test_a_process_that_calls_less_often_is_found_out(seen):
    said = "the processes went apart: process 0 is in 'A', process 1 has ended 'A'"
    assert [each["call_less_often"] for each in seen] == [said, said]


def test_one_process_ends_as_it_did():
    assert end_together("A", None) is None and end_together("A", "why") == "why"
