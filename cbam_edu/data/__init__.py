"""CIFAR-10, its miniature, synthetic shapes, and batches that live on the device."""

from cbam_edu.data.images import MEAN, STD, ImageSet, normalise

__all__ = ["MEAN", "STD", "ImageSet", "normalise"]
