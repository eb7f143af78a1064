"""Scenes laid out in cells: shares against counted pixels, rows of layouts.jsonl."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from encoder.data.options import ScenesConfig
from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.layout import LEAST_SHARE, lay_out
from encoder.data.scenes.objects import EXTENT, KINDS
from encoder.data.scenes.write import run

PIXELS = 480  # a side: 120 to a cell


def counted(box: tuple[float, ...], row: int, column: int, grid: int) -> float:
    """The share of a cell's pixels whose centres lie in the box."""
    centres = (np.arange(PIXELS) + 0.5) / PIXELS
    span = (
        slice(row * PIXELS // grid, (row + 1) * PIXELS // grid),
        slice(column * PIXELS // grid, (column + 1) * PIXELS // grid),
    )
    rows = (centres >= box[1]) & (centres <= box[3])
    columns = (centres >= box[0]) & (centres <= box[2])
    return float(np.outer(rows, columns)[span].mean())


@pytest.mark.parametrize("grid", [3, 4])
def test_words_have_the_share_of_the_cell_that_their_boxes_cover(grid):
    for index in range(40):
        scene = make_scene(3, index, "train")
        cells = lay_out(scene, grid)
        assert len(cells) == grid * grid
        assert all(cell[scene.place] == 1 for cell in cells)
        single = [item for item in scene.items if sum(o.kind == item.kind for o in scene.items) == 1]
        for item, (row, column) in product(single, product(range(grid), range(grid))):
            width, top = EXTENT[item.kind]
            x, y, half = item.pose.x, item.pose.y, item.pose.half
            box = (x - width * half, y + top * half, x + width * half, y + half)
            expected = counted(box, row, column, grid)
            found = cells[row * grid + column].get(item.kind, 0.0)
            assert found == pytest.approx(expected, abs=0.02) or expected < LEAST_SHARE + 0.02
            for word in (item.color, item.size, item.row, item.column):
                assert cells[row * grid + column].get(word, 0.0) >= found


def test_a_sign_and_what_an_actor_does_are_laid_where_they_are():
    scenes = [make_scene(3, index, "train") for index in range(200)]
    signed = next(scene for scene in scenes if scene.sign is not None)
    holds = [cell for cell in lay_out(signed, 4) if signed.sign.word in cell]
    assert 0 < len(holds) < 16 and all(cell["sign"] == cell[signed.sign.word] for cell in holds)
    tied = next(s for s in scenes if s.interaction is not None and s.interaction[1] == "tied")
    actor = tied.items[tied.interaction[0]]
    assert all(("tied" in cell) == (actor.kind in cell) for cell in lay_out(tied, 4)) or (
        sum(item.kind == actor.kind for item in tied.items) > 1
    )


def test_layouts_are_written_beside_the_text_and_are_the_same_again(tmp_path):
    config = ScenesConfig(
        image_size=64, num_train=0, num_val=0, num_test=0, num_llava_images=0, num_text=4,
        num_layouts=30, layout_grid=3, num_seed_questions=0, num_pope_pairs=0,
    )  # fmt: skip
    first, second, without = (tmp_path / name for name in ("a", "b", "c"))
    for folder in (first, second, without):
        folder.mkdir()
    run(config, first)
    run(config, second)
    assert (first / "layouts.jsonl").read_bytes() == (second / "layouts.jsonl").read_bytes()
    rows = [json.loads(line) for line in (first / "layouts.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and all(len(row["cells"]) == 9 for row in rows)
    for row in rows:
        turns = row["conversations"]
        assert turns[0]["value"] == "<image>" or turns[0]["value"].startswith("<image>\n")
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        kinds = {word for cell in row["cells"] for word in cell if word in KINDS}
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if "Is there" in question["value"]:
                asked = next(kind for kind in KINDS if f" {kind} in the image?" in question["value"])
                assert (asked in kinds) == (answer["value"] == "Yes")
    run(replace(config, num_layouts=0), without)
    assert not (without / "layouts.jsonl").exists()
    assert (without / "text.jsonl").read_bytes() == (first / "text.jsonl").read_bytes()


def test_a_grid_without_cells_is_refused():
    with pytest.raises(ValueError, match="layout_grid must be 1 or more, got 0"):
        ScenesConfig(
            image_size=64, num_train=0, num_val=0, num_test=0, num_llava_images=0, num_text=0,
            num_layouts=1, layout_grid=0, num_seed_questions=0, num_pope_pairs=0,
        )  # fmt: skip
