"""x."""
from watch import Attack
WORDS: dict[str, Attack] = {}
