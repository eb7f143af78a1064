"""One rule from bytes to an RGB picture, each part against the right pixels written out."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from encoder.data.pictures import as_rgb, decode_picture


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source, **options):
    return np.asarray(decode_picture(source, **options))


# Where the stored corners (top left, top right, bottom left, bottom right) stand once upright (EXIF 2.3)
CORNERS = {1: "0123", 2: "1032", 3: "3210", 4: "2301", 5: "0213", 6: "2031", 7: "3120", 8: "1302"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright_once(orientation, kind):
    stored = np.zeros((16, 32, 3), np.uint8)
    greys = [30, 90, 150, 210]
    for grey, rows, columns in zip(greys, (0, 0, 8, 8), (0, 16, 0, 16), strict=True):
        stored[rows : rows + 8, columns : columns + 16] = grey
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), kind, exif=exif.tobytes())
    upright = decode_picture(data)
    assert upright.size == ((32, 16) if orientation < 5 else (16, 32))
    seen = np.asarray(upright)[:, :, 0].astype(int)
    corners = [seen[2, 2], seen[2, -3], seen[-3, 2], seen[-3, -3]]
    wanted = [greys[int(corner)] for corner in CORNERS[orientation]]
    np.testing.assert_allclose(corners, wanted, atol=3)  # JPEG and WebP are lossy
    opened = as_rgb(Image.open(io.BytesIO(data)))
    assert opened.tobytes() == upright.tobytes() == as_rgb(opened).tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_leaves_the_picture_as_it_is():
    picture = Image.new("RGB", (6, 4), (10, 20, 30))
    assert (pixels(encoded(picture, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")) == (10, 20, 30)).all()


ON_WHITE = [227, 127, 127]  # 128/255 of (200, 0, 0) on 255


def half_red(mode):
    if mode == "P":
        palette = Image.new("P", (4, 4), 1)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.info["transparency"] = bytes([255, 128])
        return palette
    return Image.new("RGBA", (4, 4), (200, 0, 0, 128)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("P", "PNG")]
)
def test_transparency_is_composed_on_white(mode, kind):
    picture = half_red(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(picture, kind, **options))[0, 0], ON_WHITE)
    np.testing.assert_array_equal(np.asarray(as_rgb(picture))[0, 0], ON_WHITE)


@pytest.mark.parametrize("mode", ["RGBa", "LA", "La", "PA"])
def test_rarer_modes_with_transparency_are_composed_too(mode):
    black = Image.new("LA", (4, 4), (0, 128))
    picture = {
        "RGBa": lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert("RGBa"),
        "LA": lambda: black,
        "La": lambda: black.convert("La"),
        "PA": lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert("P").convert("PA"),
    }[mode]()
    np.testing.assert_array_equal(np.asarray(as_rgb(picture))[0, 0], [127, 127, 127])


@pytest.mark.parametrize(
    ("picture", "key"),
    [
        (Image.new("L", (4, 4), 7), 7),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.fromarray(np.full((4, 4), 500, np.uint16)), 500),
    ],
    ids=["grey", "colour", "16 bit"],
)
def test_a_transparent_colour_becomes_white(picture, key):
    picture.putpixel((0, 0), 9 if isinstance(key, int) else (9, 9, 9))
    seen = pixels(encoded(picture, transparency=key))
    assert (seen[1:] == 255).all() and (seen[0, 0] < 10).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_high_byte(kind):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    seen = pixels(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(seen, np.repeat((values // 256)[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IEND", b"")]
    )
    np.testing.assert_array_equal(pixels(data), values >> 8)


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.array([[0.0, 0.25, 0.5, 1.0]], np.float32), [0, 64, 128, 255]),  # shares of white
        (np.array([[0.0, 16.0, 128.4, 255.0]], np.float32), [0, 16, 128, 255]),
        (np.array([[0, 256, 32768, 65535]], np.int32), [0, 1, 128, 255]),
        (np.array([[0, 70000, 105000, 140000]], np.int32), [0, 128, 191, 255]),
        (np.array([[-1.0, 0.0, 0.5, 1.0]], np.float32), [0, 128, 191, 255]),
    ],
)
def test_grey_without_a_stated_range_is_scaled_and_never_clipped(values, grey):
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 1].tolist() == grey
    assert np.asarray(as_rgb(Image.fromarray(values)))[0, :, 1].tolist() == grey


def test_grey_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        decode_picture(encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


@pytest.mark.parametrize(
    ("picture", "kind", "colour"),
    [
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF", (254, 0, 0)),
        (Image.new("L", (8, 8), 100), "PNG", (100, 100, 100)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (8, 8), (0, 0, 255)).quantize(4), "GIF", (0, 0, 255)),
    ],
)
def test_other_colours_come_by_their_meaning(picture, kind, colour):
    np.testing.assert_allclose(pixels(encoded(picture, kind)), np.full((8, 8, 3), colour), atol=2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    data = encoded(red, kind, save_all=True, append_images=[blue])
    np.testing.assert_allclose(pixels(data), np.full((8, 8, 3), (255, 0, 0)), atol=2)
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    np.testing.assert_allclose(np.asarray(as_rgb(opened)), np.full((8, 8, 3), (255, 0, 0)), atol=2)


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    whole = encoded(Image.new("1", (300, 200)))
    cut = whole[:45]  # the header and no pixel
    with pytest.raises(ValueError, match="300x200 pixels; allowed are 1 to 59999"):
        decode_picture(cut, max_pixels=59_999)
    assert decode_picture(whole, max_pixels=60_000).size == (300, 200)
    (tmp_path / "big.png").write_bytes(encoded(Image.new("1", (20_000, 20_000))))
    with pytest.raises(ValueError, match="400000000 pixels; allowed are 1 to 64000000"):
        decode_picture(tmp_path / "big.png")
    with pytest.raises(ValueError, match="300x200"):
        as_rgb(Image.open(io.BytesIO(cut)), max_pixels=100)


def test_files_bytes_and_open_files_are_read_alike_and_a_missing_one_is_said(tmp_path):
    data = encoded(Image.new("RGB", (3, 2), (1, 2, 3)))
    (tmp_path / "a.jpg").write_bytes(data)  # the name says nothing
    assert decode_picture(tmp_path / "a.jpg").tobytes() == decode_picture(data).tobytes()
    assert decode_picture(io.BytesIO(data)).tobytes() == decode_picture(data).tobytes()
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        decode_picture(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", b"\0" * 64, b"<svg/>"]
)
def test_what_is_no_picture_is_named_so(data):
    with pytest.raises(ValueError, match=r"^not a picture \(JPEG"):
        decode_picture(data)


def test_a_cut_off_picture_is_refused_whatever_others_set(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as importing lmms-eval does
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    with pytest.raises(ValueError, match=r"broken picture: .*truncated"):
        decode_picture(encoded(Image.fromarray(noise), "JPEG")[:2000])


def damaged(data, draw):
    bad = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(bad))
        how = draw.choice(["byte", "zeros", "cut", "double"])
        if how == "byte":
            bad[at] = draw.randrange(256)
        elif how == "zeros":
            bad[at : at + 8] = bytes(len(bad[at : at + 8]))
        elif how == "cut":
            del bad[at : at + draw.randint(1, 40)]
        else:
            bad[at:at] = bad[at : at + 20]
        if not bad:
            break
    return bytes(bad)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "JPEG2000", "PPM", "ICO"]
)
def test_damaged_pictures_are_decoded_or_refused_in_one_line(kind):
    noise = np.random.default_rng(1).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP", "JPEG2000", "PPM", "ICO") else {"exif": exif.tobytes()}
    data, draw = encoded(Image.fromarray(noise), kind, **options), random.Random(kind)
    for _ in range(150):
        try:
            picture = decode_picture(damaged(data, draw))
        except ValueError as error:
            assert str(error) and len(str(error).splitlines()) == 1
        else:
            assert picture.mode == "RGB" and np.asarray(picture).dtype == np.uint8
