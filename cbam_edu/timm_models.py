"""The networks of `list_models` in the registry of timm, each with ``cbam_edu_`` before its name.

Importing this module registers them, so that ``timm.create_model("cbam_edu_resnet50")`` works. A
script of timm's, which does not import it, is run through it; what follows is the script's::

    python -m cbam_edu.timm_models train.py IMAGENET --model cbam_edu_resnet50 --amp
    torchrun --nproc-per-node 8 -m cbam_edu.timm_models train.py IMAGENET --model cbam_edu_resnet50

Attention is CBAM unless ``attention`` says otherwise; in a script, ``--model-kwargs attention=se``,
or ``attention=none``. A dot in a name becomes an underscore: timm takes what follows it for a tag.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import register_model
except ImportError as error:
    raise ImportError("cbam_edu.timm_models needs timm: pip install timm") from error
from torch import nn

from cbam_edu import data
from cbam_edu.models import create_model, list_models

# What timm's scripts pass to every network, and the one value that means something here.
_FIXED = {"in_chans": 3, "drop_rate": 0.0, "global_pool": "avg"}


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Return what timm calls to build the network `name`."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ValueError(
                f"timm has no weights of {name}; see cbam_edu.load_pretrained and cbam_edu.convert"
            )
        for option in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(option, None)  # of weights, too
        for option, only in _FIXED.items():
            if (value := options.pop(option, only)) != only:
                raise ValueError(f"{option} must be {only!r} for {name}, got {value!r}")
        attention = options.pop("attention", "cbam")
        attention = None if attention == "none" else attention
        model = create_model(name, attention=attention, **options)
        classes, side = vars(model)["config"]["num_classes"], model.image_size
        config = {  # where timm's scripts find size and colours
            "architecture": build.__name__,
            "num_classes": classes,
            "input_size": (3, side, side),
            "interpolation": "bilinear",
            "crop_pct": 1.0 if side == 32 else 0.875,
            "mean": data.MEAN if side == 32 else IMAGENET_DEFAULT_MEAN,
            "std": data.STD if side == 32 else IMAGENET_DEFAULT_STD,
            "classifier": "head",
        }
        vars(model).update(num_classes=classes, pretrained_cfg=config, default_cfg=config)
        return model

    build.__name__ = "cbam_edu_" + name.replace(".", "_")
    build.__doc__ = f"Build cbam_edu's {name}."
    return build


def _run_script() -> None:
    """Run the script that the command line names, as Python itself would."""
    if len(sys.argv) < 2:
        sys.exit("which script? such as: python -m cbam_edu.timm_models train.py --help")
    del sys.argv[0]
    if not Path(sys.argv[0]).is_file():
        sys.exit(f"{sys.argv[0]} is no file; give the path of a script of timm's")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # Registered under the module's real name, once.
    import cbam_edu.timm_models

    cbam_edu.timm_models._run_script()
else:
    for _name in list_models():
        register_model(_entry_point(_name))
