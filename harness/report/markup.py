"""HTML and SVG as nested calls: every text is escaped because only `Markup` passes as it is."""

import html
import re

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")  # controls, bidi
_VOID = ("br", "img", "link", "meta")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: object) -> str:
    """Text as HTML shows it; control characters and those that turn the reading direction are replaced."""
    if isinstance(text, Markup):
        return text
    return html.escape(_FORBIDDEN.sub("�", str(text)), quote=True)


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`.

    `None` children and attributes that are None or False are left out, True gives a bare attribute;
    `class_` means class, and other underscores are dashes (`data_value`, `aria_label`), but not in SVG's
    names, which have none.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{name}>")


def join(children: object) -> Markup:
    """Children one after the other."""
    return Markup("".join(escape(child) for child in children if child is not None))
