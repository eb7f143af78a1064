"""What the demo's Llama says rightly of clear cells: `python bench/llama_captions.py [FOLDER] [BASELINE]`
prints a table and writes results/bench/llama_captions.json.

A projector learns in stage 1 from a frozen Llama's captions alone: what the Llama does not say rightly of
cells that hold the very words, no picture can teach. The sign's word and the number of things have one right
answer; which thing a caption names first is free, so its colour and kind have not, and their shares stay
below 100 %. Beside them the same facts asked for in a question. BASELINE is another Llama's folder.
"""

import sys
from pathlib import Path

from _table import ROOT, Row, make_row, publish
from transformers import AutoTokenizer, LlamaForCausalLM

from encoder.data.scenes.compose import make_scene
from encoder.data.scenes.conversations import layout_record
from llava_bridge.demo_llm.cells import build_cell_lessons, tabulate
from llava_bridge.demo_llm.train_llm import caption_words, evaluate

NUM_SCENES, GRID = 3000, 4


def scores(folder: Path) -> dict[str, float]:
    """Its scores on scenes of the test split, which no Llama was taught."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder).float().eval()
    records = [
        layout_record(make_scene(2, index, "test"), f"{index}", 2, GRID) for index in range(NUM_SCENES)
    ]
    table = tabulate(records, tokenizer)
    lessons = build_cell_lessons(dict(enumerate(records)), table, tokenizer, model.config.hidden_size)
    return evaluate(model, lessons.in_order(64, tokenizer.pad_token_id), "fp32", caption_words(tokenizer))


def rows(folder: Path, baseline: Path | None) -> list[Row]:
    ours, theirs = scores(folder), scores(baseline) if baseline else {}
    note = f"of clear cells; baseline: {baseline}" if baseline else "no baseline folder was given"
    shares = [name for name in ours if name.endswith("_accuracy") and name != "token_accuracy"]
    shares.sort(key=lambda name: not name.endswith("_in_captions_accuracy"))
    return [
        make_row(
            name.removesuffix("_accuracy"),
            "%",
            100 * ours[name],
            100 * theirs[name] if theirs.get(name) else None,
            note,
        )
        for name in shares
    ]


if __name__ == "__main__":
    folders = [Path(each) for each in sys.argv[1:3]] or [ROOT / "weights" / "demo" / "llama"]
    for each in folders:
        if not (each / "config.json").is_file():
            sys.exit(f"no language model in {each}; give what train_llm wrote, OUT/weights")
    publish("llama_captions", rows(folders[0], folders[1] if folders[1:] else None))
