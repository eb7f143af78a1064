"""How many tokens the blind control has. No torch here: the command line asks it too."""

BLIND = "module:encoder.frozen:BlindEncoder"  # source of the control rows
_STRIDE = 16  # px of a picture's side to each token


def blind_side(image_size: int) -> int:
    """Tokens on a side that the blind encoder gives a picture of `image_size` px.

    Raises: ValueError if that is no whole number of them.
    """
    side, left = divmod(image_size, _STRIDE)
    if side < 1 or left:
        below = max(_STRIDE, side * _STRIDE)
        raise ValueError(
            f"image_size {image_size} of a blind encoder must be a multiple of {_STRIDE} px; "
            f"give {below} or {below + _STRIDE}"
        )
    return side
