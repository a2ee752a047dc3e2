"""Attention for networks that were not written here: torchvision's, timm's, yours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cbam_edu.attention import CBAM, check_choice
from cbam_edu.neighbours import (
    ATTENTIONS,
    BAM,
    ECA,
    SqueezeExcitation,
    attention_layer,
    check_name,
)
from cbam_edu.placement import Graph, find_places
from cbam_edu.recording import Call, check_size, is_map, record

_LAYERS = (BAM, CBAM, ECA, SqueezeExcitation)  # what `attention_layer` makes


class Attended(nn.Module):
    """A module of the network, and the attention behind it: what `add_attention` puts in its place.

    Parameters
    ----------
    body : torch.nn.Module
        The module; it keeps its weights, hooks and mode.
    attention : torch.nn.Module
        Maps ``(N, C, H, W) float`` to the same shape.
    before : bool
        Whether the attention comes before `body`, which in evaluation passes its input through:
        paths that stochastic depth drops in training are dropped whole.
    mix : torch.nn.Parameter, optional
        A number: ``x + mix * (attention(x) - x)`` then takes the attention's place.
    """

    def __init__(
        self,
        body: nn.Module,
        attention: nn.Module,
        *,
        before: bool = False,
        mix: nn.Parameter | None = None,
    ):
        super().__init__()
        self.body, self.attention, self.before, self.mix = body, attention, before, mix

    def _attend(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x)
        return attended if self.mix is None else x + self.mix * (attended - x)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the module's map with attention; the arguments are those of `body`."""
        if self.before:
            return self.body(self._attend(args[0]), *args[1:], **kwargs)
        return self._attend(self.body(*args, **kwargs))

    def extra_repr(self) -> str:
        """Return what `print` shows beside the parts."""
        return f"before={self.before}"


def add_attention(
    model: nn.Module,
    attention: str = "cbam",
    *,
    where: Sequence[str] | None = None,
    start: str = "random",
    input_size: tuple[int, int, int] = (3, 224, 224),
    **options: Any,
) -> nn.Module:
    """Put attention into a network that was not written here, and keep its weights.

    The place is that of the paper (Woo et al., ECCV 2018, figure 3): in each residual block, behind
    the branch's last layer, mostly BatchNorm, and before the addition. No table of networks says
    where that is: one image of zeros is sent through the network, and what its operations do is
    looked at. Looked for are, each if the former is not there,

    1. additions of two maps, one of which has passed more convolutions since they parted: the
       residual branch (ResNet, ResNeXt, RegNet, MobileNetV2 and V3, EfficientNet, ConvNeXt, ...);
    2. concatenations of maps with maps that convolutions made from them: each layer's new maps
       (DenseNet);
    3. poolings that halve a map: what they pool (VGG, AlexNet, SqueezeNet, Inception).

    BAM belongs to the ends of stages (Park et al., BMVC 2018, section 4): with
    ``attention="bam"`` it comes behind the last residual block before each drop of the resolution,
    or else before the poolings.

    Parameters
    ----------
    model : torch.nn.Module
        The network; it is changed in place. Load its weights before.
    attention : {"cbam", "channel", "spatial", "se", "eca", "bam"}
        Which one, as for `attention_layer`.
    where : sequence of str, optional
        Names of modules, as in ``model.named_modules()``, that get attention behind them; each has
        to give a map ``(N, C, H, W) float``. Without them, the places are found.
    start : {"random", "identity"}
        "identity" mixes the attention in by ``x + mix * (attention(x) - x)``, where the learnable
        number ``mix`` starts at zero: at first the network gives what it gave, to the bit, as a
        pretrained one should; the first step of training moves ``mix``, and the following ones the
        attention, too. (A scalar of zero at the residual branch is SkipInit of De and Smith,
        arXiv:2002.10444, and ReZero of Bachlechner et al., arXiv:2003.04887.)
    input_size : tuple of int
        Channels, height and width of an image that the network takes.
    **options
        Passed to each layer, such as ``reduction=8``.

    Returns
    -------
    torch.nn.Module
        The same network. Each module that got attention is the ``body`` of an `Attended` in its
        place, so that the keys of its weights gain ``.body``: ``layer1.0.bn3.body.weight``.

    Raises
    ------
    ValueError
        For a bad argument, a network that already has such attention, that doesn't take the image,
        or in which there is no place; the network is then as it was.
    TypeError
        For what is no network.

    Notes
    -----
    A module that is called several times in a pass gets one attention for all of its calls, as it
    has one set of weights for them. If a layer scale ends the branch (ConvNeXt), attention comes
    before it, where the map has its own size and not a millionth of it; only where no module gives
    that map (timm's ConvNeXt) it comes behind. A block without a shortcut (MobileNetV2 where it
    lowers the resolution) gets none.

    Examples
    --------
    >>> import torchvision
    >>> model = add_attention(torchvision.models.resnet50(), start="identity")
    >>> [n for n, m in model.named_modules() if isinstance(m, Attended)][:2]
    ['layer1.0.bn3', 'layer1.1.bn3']
    """
    check_name("attention", attention, list(ATTENTIONS))
    check_choice("start", start, ("random", "identity"))
    check_size(input_size)
    _check_network(model)
    if any(isinstance(module, Attended) for module in model.modules()):
        raise ValueError("the network already has such attention; remove_attention(model) first")
    named = dict(model.named_modules(remove_duplicate=False))
    own = [name for name, m in named.items() if isinstance(m, _LAYERS)]
    if own and where is None:
        raise ValueError(
            f"the network has attention of its own, at {own[0]}; make it without, or name the "
            "modules that are to get more (where=)"
        )
    if where is not None:
        _check_names(where, named)
    graph = Graph(*record(model, input_size))
    if where is None:
        places = _found_places(graph, named, attention)
    else:
        places = [_named_place(graph, name, named[name]) for name in where]
    new = {place.module: _attended(place, attention, start, options) for place in places}
    for parent in named.values():
        for key, child in list(parent._modules.items()):
            if child in new:
                parent._modules[key] = new[child]
    return model


def remove_attention(model: nn.Module) -> nn.Module:
    """Take out what `add_attention` put in: the network's own modules are back in their places.

    Their weights are as they are now, which is as they were if nothing was trained since.

    Raises
    ------
    ValueError
        For a network without such attention.
    """
    _check_network(model)
    slots = [
        (parent, key, child.body)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if isinstance(child, Attended)
    ]
    if not slots:
        raise ValueError("the network has no attention that add_attention put in")
    for parent, key, body in slots:
        parent._modules[key] = body
    return model


def _check_network(model: object) -> None:
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model must be a network, a torch.nn.Module; got {kind}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is code of TorchScript, which nothing can be put into; "
            "change the network before torch.jit.script or torch.jit.trace"
        )


def _check_names(where: object, named: dict[str, nn.Module]) -> None:
    if not isinstance(where, list | tuple) or not where:
        raise ValueError(f'where must be a list such as ["layer1.0.bn3"], got {where!r}')
    for name in where:
        check_name("module", name, [name for name in named if name])


def _found_places(graph: Graph, named: dict[str, nn.Module], attention: str) -> list[Call]:
    try:
        return find_places(graph, at_stage_ends=attention == "bam")
    except ValueError as error:
        names = {module: name for name, module in named.items()}
        maps = dict.fromkeys(names[c.module] for c in graph.calls[:-1] if is_map(c))
        hint = f"; here, such shapes come from {', '.join(list(maps)[:5])}" if maps else ""
        raise ValueError(
            f"{type(named['']).__name__}: {error}. Name the modules yourself, "
            f'where=["...", ...]: each has to give a map (N, C, H, W){hint}'
        ) from None


def _named_place(graph: Graph, name: str, module: nn.Module) -> Call:
    calls = [call for call in graph.calls if call.module is module]
    if not calls:
        raise ValueError(f"module {name!r} was not called when an image passed: name another")
    for call in calls:
        if not is_map(call):
            given = call.output
            gave = type(given).__name__
            if isinstance(given, Tensor):
                layout = ", which is (N, H, W, C)" * call.channels_last
                gave = f"{given.dtype} {tuple(given.shape)}{layout}"
            raise ValueError(f"module {name!r} has to give a float (N, C, H, W); it gave {gave}")
    if len({call.output.shape[1] for call in calls}) > 1:
        channels = ", ".join(str(call.output.shape[1]) for call in calls)
        raise ValueError(f"module {name!r} gives maps of {channels} channels in one pass: no layer")
    return calls[0]


def _attended(place: Call, attention: str, start: str, options: dict[str, Any]) -> Attended:
    body, like = place.module, {"device": place.device, "dtype": place.output.dtype}
    layer = attention_layer(attention, place.output.shape[1], **options)
    layer.to(**like).train(body.training)
    mix = nn.Parameter(torch.zeros((), **like)) if start == "identity" else None
    new = Attended(body, layer, before=place.passes_through, mix=mix)
    new.training = body.training  # not new.train(): the parts of a body may differ in mode
    return new
