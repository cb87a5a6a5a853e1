"""What each release takes beside a prompt."""

from ..errors import InputError


def refuse_inputs(family: str, *, negative: str | None, has_picture: bool) -> None:
    """Refuse an input that only the other release was trained to read.

    Args:
        family: "1.0" or "1.1".
        negative: negative prompt, if there is one.
        has_picture: whether there is a picture to start from.

    Raises:
        InputError: naming the input and the release.
    """
    if family == "1.0" and has_picture:
        raise InputError(
            "expected no start picture for release 1.0, which reads text only, got one: leave it out or use release 1.1"
        )
    if family == "1.1" and negative:
        raise InputError(
            "expected no negative prompt for release 1.1, which was not trained to read one, got one: "
            "leave it out or use release 1.0"
        )
