"""Bytes to an RGB picture, by one rule for training, shards, own data, tokens, evaluation and chat.

The rule: the first frame; upright (EXIF orientation applied); transparency composed on white, as img2dataset
does; 16 bits a channel to their high byte; CMYK, YCCK, palettes, grey and black-and-white by their meaning;
colour profiles are ignored. 32-bit and float grey, whose files state no range: `_stretch`. A picture with too
many pixels is refused by its header, before anything is decoded. No torch here.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # of one picture; beyond it, decoding would be an attack on memory
# The formats that are tried, frequent ones first. Pillow knows more: one runs a program (EPS), one takes any
# bytes for a picture (TGA)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # where mode I holds 16 bits


def decode_picture(source: bytes | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB picture that bytes, a file or an open file hold; it carries no metadata.

    Raises: ValueError in one line for whatever cannot be used: no picture, cut off, broken, more than
        `max_pixels`; OSError where the path itself cannot be opened.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return decode_picture(file, max_pixels=max_pixels)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with open_header(file, max_pixels) as picture:
            return _to_rgb(picture, max_pixels)
    except Exception as error:  # of any kind: Pillow's readers raise whatever the bytes make them
        raise ValueError(picture_fault(error, max_pixels)) from None


def open_header(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of one of FORMATS of which the header is read and nothing decoded.

    Raises: Exception: of any kind, where it is none or has no pixels or too many; `picture_fault` words it.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing lmms-eval sets it: cut-off ones would be grey below
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS)  # Pillow's own limit, for what only decoding finds
    picture = Image.open(file, formats=_known_formats())
    check_size(picture, max_pixels)
    return picture


def as_rgb(picture: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same rule for a picture that a library opened; applying it again changes nothing.

    Raises: ValueError in one line if it cannot be used.
    """
    try:
        return _to_rgb(picture, max_pixels)
    except Exception as error:  # opened does not mean decoded
        raise ValueError(picture_fault(error, max_pixels)) from None


def check_size(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Raises: ValueError if an opened picture has no pixels, or more than `max_pixels`."""
    if not 0 < picture.width * picture.height <= max_pixels:
        raise ValueError(f"{picture.width}x{picture.height} pixels; allowed are 1 to {max_pixels}")


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(picture: Image.Image, max_pixels: int) -> Image.Image:
    check_size(picture, max_pixels)
    if picture.tell():
        picture.seek(0)
    picture.load()
    check_size(picture, max_pixels)  # an icon's header can say less than the picture inside
    orientation = _orientation(picture)
    rgb = _on_white(picture)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info.clear()  # what it says of orientation and transparency has been applied
    return rgb


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of the RGB picture that an opened one will be; PNG apart, nothing is decoded."""
    is_turned = _orientation(picture) >= 5  # EXIF's numbers of quarter turns
    return (picture.width, picture.height) if is_turned else (picture.height, picture.width)


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata of any kind: the pixels are as good as another picture's
        return 1


def _on_white(picture: Image.Image) -> Image.Image:
    """A decoded picture of any mode in RGB."""
    if picture.mode in (*_SIXTEEN_BIT, "I", "F"):
        return _grey(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # the transparent colour of a PNG with 16 bits a channel
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    rgba = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _grey(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    is_sixteen = picture.mode in _SIXTEEN_BIT or picture.format in _SIXTEEN_BIT_FORMATS
    grey = (values >> 8).clip(0, 255) if is_sixteen else _stretch(values)
    grey = grey.astype(np.uint8)
    if isinstance(key := picture.info.get("transparency"), int):
        grey = np.where(values == key, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    """Grey of no stated range to 0..255: floats within 0..1 are shares of white, values within 0..255 are
    8-bit, those within 0..65535 are 16-bit; others go from their least (black) to their greatest (white)."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels are not finite numbers")
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        return np.rint(values.astype(np.float64) * 255)
    if low >= 0 and high <= 255:
        return np.rint(values)
    if low >= 0 and high <= 65535:
        return values // 256
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low)))


def picture_fault(error: Exception, max_pixels: int = MAX_PIXELS) -> str:
    """What is wrong with a picture, in one line, from whatever opening or decoding it raised."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        found = re.search(r"\d+", str(error))
        return f"{found[0] if found else 'too many'} pixels; allowed are 1 to {max_pixels}"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture ({', '.join(FORMATS)})"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, ValueError) and text:
        return text
    return f"broken picture: {text or type(error).__name__}"
