"""x."""
from watch import Attack
MODELS: dict[str, Attack] = {}
