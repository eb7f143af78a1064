"""The terminal chat answers as evaluation does, and names what is missing."""

import io

import pytest
from PIL import Image

from llava_bridge import chat
from llava_bridge.lmms import LlavaLmms
from llava_bridge.model import build, load, read_template, save


@pytest.fixture
def folder(llm, tmp_path):
    save(*build("tiny", None, llm, "eager", seed=0), tmp_path / "model", template="plain")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path


def test_each_line_is_answered_as_evaluation_answers_it(folder, capsys, monkeypatch):
    options = ["--model", str(folder / "model"), "--image", str(folder / "red.png"), "--device", "cpu"]
    options += ["--max-new-tokens", "4"]
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this\nis it big\n\nnever asked\n"))
    assert chat.main(options) == 0
    answers = capsys.readouterr().out.splitlines()
    model, processor = load(folder / "model", "sdpa", "float32")
    answerer = LlavaLmms(model, processor, max_new_tokens=4, template=read_template(folder / "model"))
    picture = Image.open(folder / "red.png").convert("RGB")
    assert answers == [answerer.answer(text, [picture]) for text in ("what is this", "is it big")]
    assert chat.main([*options, "--question", "is it big"]) == 0
    assert capsys.readouterr().out.splitlines() == answers[1:]


def test_missing_model_and_broken_picture_are_one_line(folder, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    for model, image, said in (
        ("none", "red.png", "no LLaVA model in"),
        ("model", "broken.png", "not a picture"),
        ("model", "absent.png", "absent.png"),
        ("model", "cut.png", "cut.png"),
        ("model", "bomb.png", "bomb.png: "),
    ):
        assert (
            chat.main(["--model", str(folder / model), "--image", str(folder / image), "--question", "a"])
            == 2
        )
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("error: ")
        assert said in line
