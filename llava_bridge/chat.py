"""Ask a model about a picture in the terminal: `python -m llava_bridge.chat --model DIR --image FILE`.

DIR is a folder that training wrote or one in llava-hf's layout. Each line of input is a question of its own;
`--question` asks one and ends. Greedy answers, by the very object that evaluation uses.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from encoder.data.pictures import decode_picture
from encoder.runtime.stage import first_line


def main(argv: list[str] | None = None) -> int:
    """Answer questions until the input ends; 0, or 2 and one line where the model or picture is missing."""
    parser = argparse.ArgumentParser(prog="python -m llava_bridge.chat", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--image", type=Path, help="picture file; without one, text alone")
    parser.add_argument("--question", help="ask this and end")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    try:
        pictures = [_open(options.image)] if options.image else []
        answerer = _load(options)
    except (OSError, ValueError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    if options.question is not None:
        print(answerer.answer(options.question, pictures))
        return 0
    if sys.stdin.isatty():
        print("ask; an empty line ends", file=sys.stderr)
    for line in sys.stdin:
        if not line.strip():
            break
        print(answerer.answer(line.strip(), pictures), flush=True)
    return 0


def _open(path: Path) -> Image.Image:
    try:
        return decode_picture(path)
    except ValueError as error:
        raise ValueError(f"picture {path}: {error}") from None


def _load(options: argparse.Namespace):
    import llava_bridge.hf  # noqa: F401 - registers our tower
    from llava_bridge.lmms import LlavaLmms
    from llava_bridge.model import load, read_template

    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    model, processor = load(options.model, "sdpa", dtype)
    return LlavaLmms(
        model.to(options.device),
        processor,
        max_new_tokens=options.max_new_tokens,
        template=read_template(options.model),
    )


if __name__ == "__main__":
    sys.exit(main())
