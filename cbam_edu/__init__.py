"""The reference code of the CBAM book: attention modules, networks, data and training."""

__version__ = "0.1.0"

from cbam_edu.attention import ChannelAttention, SpatialAttention
from cbam_edu.fused import CBAM
from cbam_edu.models import create_model, list_models, load_model, load_pretrained, save_model
from cbam_edu.neighbours import BAM, ECA, SqueezeExcitation, attention_layer
from cbam_edu.surgery import add_attention, remove_attention

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "ChannelAttention",
    "SpatialAttention",
    "SqueezeExcitation",
    "add_attention",
    "attention_layer",
    "create_model",
    "list_models",
    "load_model",
    "load_pretrained",
    "remove_attention",
    "save_model",
]
