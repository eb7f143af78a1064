"""Figures: each is written, and shows what it was given where it was given."""

import numpy as np
from PIL import Image

from harness.tables import figures


def solid(colour, num=5):
    return np.full((num, 16, 16, 3), colour, dtype=np.uint8)


def share_of(path, colour):
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float((np.abs(picture - np.array(colour)).max(axis=-1) < 3).mean())


def test_reconstructions_show_every_set_on_its_line(tmp_path):
    red, blue = (255, 0, 0), (0, 0, 255)
    path = figures.reconstructions(tmp_path / "r.png", {"original": solid(red), "ov3": solid(blue)})
    picture = np.asarray(Image.open(path).convert("RGB"))
    upper, lower = np.array_split(picture, 2)
    assert (upper == red).all(axis=-1).mean() > 0.3
    assert (lower == blue).all(axis=-1).mean() > 0.3
    assert not (lower == red).all(axis=-1).any()


def test_samples_stand_in_the_line_of_their_class(tmp_path):
    pictures = np.concatenate([solid((255, 0, 0), 3), solid((0, 255, 0), 3)])
    labels = np.array([0, 0, 0, 1, 1, 1])
    path = figures.samples(
        tmp_path / "s.png",
        {"a": (pictures, labels), "b": (pictures[::-1], labels)},
        {0: "house", 1: "tree"},
        per_class=3,
    )
    assert abs(share_of(path, (255, 0, 0)) - share_of(path, (0, 255, 0))) < 0.02
    assert share_of(path, (255, 0, 0)) > 0.2


def test_dots_are_drawn_for_measured_and_control_rows(tmp_path):
    metric = {"value": 60.0, "stderr": 2.0}
    rows = [
        {"encoder": "ov3", "kind": "measured", "metrics": {"S/One": metric, "S/Two": metric}},
        {"encoder": "blind", "kind": "blind", "metrics": {"S/One": {"value": 25.0, "stderr": None}}},
    ]
    path = figures.dots(tmp_path / "d.png", rows, ["S/One", "S/Two"], chance=25.0, title="S")
    assert share_of(path, (0x00, 0x72, 0xB2)) > 0
    assert share_of(path, (0x88, 0x88, 0x88)) > 0


def test_a_probes_circle_has_its_encoders_colour_and_the_next_encoder_keeps_its_own(tmp_path):
    metric = {"value": 60.0, "stderr": 2.0}
    rows = [{"encoder": name, "kind": "measured", "metrics": {"S/One": metric}} for name in ("ov3", "clip")]
    probe = {"encoder": "ov3, probe", "kind": "probe", "metrics": {"S/One": {"value": 90.0, "stderr": 2.0}}}
    drawn = [
        figures.dots(tmp_path / f"{i}.png", some, ["S/One"], chance=25.0, title="S")
        for i, some in enumerate((rows, [rows[0], probe, rows[1]]))
    ]
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert share_of(drawn[1], blue) > share_of(drawn[0], blue)
    assert share_of(drawn[1], orange) > 0
