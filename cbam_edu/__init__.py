"""The reference code of the CBAM book: attention modules, networks, data and training."""

__version__ = "0.1.0"
