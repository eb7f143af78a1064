"""Tokens that the language model saw of the questions' pictures."""

import pytest

from llava_bridge.config import TOKENS_SEEN
from llava_bridge.seen import read_tokens_seen, tokens_seen


def test_mean_and_maximum_are_over_the_pictures_of_all_questions():
    found = tokens_seen({16: 3, 88: 1}, base=16)
    assert tuple(found) == TOKENS_SEEN
    assert [metric["value"] for metric in found.values()] == [16, (3 * 16 + 88) / 4, 88]
    assert all(metric["num_samples"] == 4 and metric["unit"] == "tokens" for metric in found.values())


def test_attempts_of_one_evaluation_add_up(tmp_path):
    read_tokens_seen(tmp_path, {16: 3}, base=16)
    found = read_tokens_seen(tmp_path, {88: 1}, base=16)
    assert found == tokens_seen({16: 3, 88: 1}, base=16)
    assert read_tokens_seen(tmp_path, {}, base=16) == found


@pytest.mark.parametrize("counts", [{}, {16: 0}])
def test_without_a_picture_there_is_nothing_to_say(tmp_path, counts):
    assert read_tokens_seen(tmp_path, counts, base=16) == {}
