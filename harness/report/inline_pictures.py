"""Pictures inside the page: figures that the suites drew, as data URIs, each a button that enlarges it."""

import base64
import struct
from pathlib import Path

from harness.report.markup import Markup, element

# What the suites' figures show, by file name; another figure goes by its name.
_CAPTIONS = {
    "reconstructions": (
        "Reconstructions",
        "The same pictures through each frozen encoder and its decoder, originals first; evenly spaced "
        "through the set, never chosen.",
    ),
    "samples": (
        "Samples by class",
        "One line per class, the first of each: real pictures, then what was generated as each encoder's "
        "tokens.",
    ),
    "reconstructions_branches": (
        "Reconstructions by what trains the encoder",
        "The same pictures through each variant, originals first; evenly spaced, never chosen.",
    ),
    "synergy": (
        "Gradients of the two branches",
        "Cosine between the gradients of reconstruction and understanding on the encoder, over each training "
        "and layer by layer (dotted: earlier steps): above 0 they pull the same way.",
    ),
    "prompts": (
        "Prompts and pictures",
        "The first prompt of each of SceneEval's tasks, and the first pictures that each row drew of it; the "
        "scene that the prompt was made of comes first.",
    ),
    "training": (
        "SceneEval over the training",
        "Pictures that are right, in %, of the averaged weights after so many steps, without guidance; the "
        "dashed line is chance.",
    ),
    "seed_dimensions": (
        "Scenes-SEED by question",
        "Correct answers in each of nine dimensions with one standard error; the dashed line is chance.",
    ),
}
_CURVES = "curves_"  # and the study: figures of suite=ablation
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def figures(folder: Path) -> list[Markup]:
    """Every PNG of a suite's folder."""
    return [_figure(path) for path in sorted(folder.glob("*.png"))]


def data_uri(content: bytes) -> str | None:
    """A PNG or JPEG file as a data URI; None for anything else."""
    for signature, kind in _SIGNATURES.items():
        if content.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return None


def _figure(path: Path) -> Markup:
    name = path.stem.replace("_", " ").capitalize()
    title, text = _CAPTIONS.get(path.stem, (name, f"{path.name}, as its suite drew it."))
    if path.stem.startswith(_CURVES):
        text = (
            "Terms of the objective on training batches; a branch that does not train the encoder is a probe."
        )
    content = path.read_bytes()
    uri = data_uri(content)
    if uri is None:
        return element("p", f"{path.name} is no picture that can be shown.", class_="note")
    width, height = struct.unpack(">II", content[16:24])  # of a PNG's first chunk
    picture = element("img", src=uri, alt=f"{title}. {text}", width=width, height=height)
    return element(
        "figure",
        element("figcaption", element("b", title), " ", text),
        element("button", picture, type="button", class_="zoom", aria_label=f"enlarge: {title}"),
        class_="picture",
    )
