"""Attention maps of Hugging Face models, without a change to the model and without a [B, H, T, S] tensor.

    from cpgr_kernels.integrations.transformers import capture_maps, register

    register()
    model = BertModel.from_pretrained(..., attn_implementation="cpgr")  # or model.set_attn_implementation("cpgr")
    with capture_maps(model, rows=[0]) as maps:
        model(**inputs)
    maps[-1].map  # [B, 1, S]: where the last layer's first token looks, the mean over its heads

Outside of `capture_maps` the implementation is transformers' own `sdpa`, call for call, and masks are sdpa's always: a
bool mask where one is needed, none where a causal flag or nothing will do. Inside, the chosen attention modules run
`attention_with_map`. A model of several parts takes one implementation a part:

    blip2.set_attn_implementation({"qformer_config": "cpgr", "vision_config": "sdpa", "text_config": "sdpa"})
    with capture_maps(blip2, kinds="cross") as maps:  # where each of the Q-Former's queries looks in the image
        blip2(**inputs)

`output_attentions=True` is for eager alone and refused here; `capture_maps` stands in its place.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attention_map, attention_with_map

OLDEST = (5, 17)
_CROSS = re.compile("cross|encoder_attn|enc_?dec|encoder_decoder", re.IGNORECASE)
# Arguments of some models that change the weights in ways a map would not show.
_NOT_SHOWN = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "cache")
# Of these, the ones that sdpa would leave out without a word.
_NOT_COMPUTED = ("s_aux", "sinks", "indices", "block_indices")

_registered: set[str] = set()
_captures: list["_Capture"] = []


class AttentionMap(NamedTuple):
    """What one call of one attention module looked at."""

    module: str  # its name in the model, as named_modules() has it
    layer: int | None  # the first number in that name
    kind: str  # "self" or "cross"
    call: int  # 0 for the module's first call in this capture, 1 for the second (a step of generate), ...
    map: Tensor  # [B, R, S], the mean over heads; a padded row that sees nothing is 0


def register(name: str = "cpgr") -> None:
    """Make `name` an attention implementation of transformers. May be called again.

    Raises:
        ImportError: transformers is missing or older than 5.17.
        ValueError: transformers has an implementation of that name.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"register: transformers cannot be imported ({error}); `pip install 'transformers>=5.17'`"
        ) from error
    if tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2]) < OLDEST:
        raise ImportError(
            f"register: transformers 5.17 or later is needed, found {transformers.__version__}; "
            "`pip install -U transformers`"
        )
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    if name not in _registered and (name == "eager" or name in AttentionInterface()):
        raise ValueError(f"register: transformers has an attention implementation {name!r} already; take another name")
    AttentionInterface.register(name, partial(_attend, sdpa_attention_forward))
    AttentionMaskInterface.register(name, sdpa_mask)
    _registered.add(name)


@contextmanager
def capture_maps(
    model: nn.Module,
    rows: int | Iterable[int] | Tensor | None = None,
    *,
    kinds: str | Collection[str] = ("self", "cross"),
    layers: int | Collection[int] | None = None,
    modules: str | Callable[[str], bool] | None = None,
) -> Iterator[list[AttentionMap]]:
    """Collect the attention maps of the calls made within the block, in their order.

    Args:
        model: a model, or a part of one, that runs with the registered implementation.
        rows: positions of query tokens in a call, alike for the batch ([R]) or one row of them a sample ([B, R]); negative
            ones count from the end. None: all. Only these rows are computed. In `generate` a step after the first has
            one token, so that -1 (the last token of every step) and None are what fits all steps.
        kinds: "self", "cross" or both. A module is taken for cross-attention by its name or its class's.
        layers: numbers of layers, as `AttentionMap.layer` has them. None: all.
        modules: a regular expression to be found in a module's name, or a function of the name. None: all.

    Yields:
        A list, empty at first, of `AttentionMap`. Maps carry gradients, unless made under no_grad; a loss on them trains
        the model. Attention dropout is applied to the output as ever, and the map is that of the weights before it.

    Raises:
        ValueError: no part of the model runs with the registered implementation, or a part does that cannot (its
            attention is not sdpa's).
        IndexError: a row outside a call's tokens (not for rows given on a GPU: there, such a map is 0).

    Example:
        >>> with capture_maps(model, rows=-1, layers=[10, 11]) as maps:
        ...     model.generate(**inputs, max_new_tokens=5)
        >>> [(each.layer, each.call, each.map.shape) for each in maps]
    """
    _check_model(model)
    kinds, layers = _as_set(kinds, str), None if layers is None else _as_set(layers, int)
    if not kinds <= {"self", "cross"} or not kinds:
        raise ValueError(f"capture_maps: kinds must be 'self', 'cross' or both, got {sorted(kinds)}")
    capture = _Capture(model, _Rows(rows), kinds, layers, modules)
    _captures.append(capture)
    try:
        yield capture.maps
    finally:
        _captures.remove(capture)
    if not capture.maps:
        seen = f"; left out by kinds, layers or modules: {sorted(capture.left_out)}" if capture.left_out else ""
        warnings.warn(f"capture_maps: no attention of {type(model).__name__} was captured{seen}", stacklevel=3)


class _Capture:
    """One open `capture_maps`."""

    def __init__(self, model, rows, kinds, layers, modules):
        self.maps: list[AttentionMap] = []
        self.rows, self.left_out, self._calls = rows, set(), Counter()
        self._kinds, self._layers = kinds, layers
        self._chosen = re.compile(modules).search if isinstance(modules, str) else modules
        self._names = {id(module): name for name, module in model.named_modules()}
        self._model = type(model).__name__
        self._checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    def place(self, module: nn.Module) -> tuple[str, int | None, str] | None:
        """Name, layer and kind of a module whose maps are wanted here, None of any other."""
        name = self._names.get(id(module))
        if name is None:
            return None
        numbers = re.findall(r"(?<![^.])\d+(?![^.])", name)
        layer = int(numbers[0]) if numbers else None
        kind = "cross" if _CROSS.search(f"{name} {type(module).__name__}") else "self"
        wanted = kind in self._kinds and (self._layers is None or layer in self._layers)
        if not wanted or (self._chosen is not None and not self._chosen(name)):
            self.left_out.add(name)
            return None
        return name, layer, kind

    def add(self, place: tuple[str, int | None, str], found: Tensor) -> None:
        name = place[0]
        if found.requires_grad and self._checkpointed:
            raise RuntimeError(
                f"capture_maps: {self._model} recomputes its layers in the backward pass, outside the capture; call "
                "gradient_checkpointing_disable(), or capture under torch.no_grad()"
            )
        self.maps.append(AttentionMap(*place, self._calls[name], found))
        self._calls[name] += 1


class _Rows:
    """The rows asked for, as indices into a call's tokens; checked where that costs no wait for a device."""

    def __init__(self, rows):
        if isinstance(rows, int):
            rows = [rows]
        if rows is not None and not isinstance(rows, Tensor):
            rows = torch.as_tensor(rows if hasattr(rows, "__array__") else list(rows))
        if rows is not None and (rows.dim() not in (1, 2) or rows.dtype is torch.bool or rows.is_floating_point()):
            raise ValueError(f"capture_maps: rows must be integers, [R] or [B, R], got {rows.dtype} {list(rows.shape)}")
        self._rows = rows
        self._ends = None
        if rows is not None and rows.device.type == "cpu" and rows.numel():
            self._ends = int(rows.min()), int(rows.max())
        self._known: dict[tuple, Tensor] = {}

    def of(self, length: int, device: torch.device, name: str) -> Tensor | None:
        if self._rows is None:
            return None
        if self._ends is not None and (self._ends[0] < -length or self._ends[1] >= length):
            raise IndexError(
                f"capture_maps: rows {self._ends[0]}..{self._ends[1]} are outside the {length} tokens of {name}"
            )
        if (length, device) not in self._known:
            rows = self._rows.to(device)
            self._known[length, device] = torch.where(rows < 0, rows + length, rows)
        return self._known[length, device]


def _attend(
    sdpa: Callable,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others,
) -> tuple[Tensor, None]:
    """What transformers calls: query [B, H, T, D], key and value [B, G, S, D] in, output [B, T, H, D] out."""
    _refuse(module, _NOT_COMPUTED, others)
    if others.get("output_attentions"):
        raise ValueError("output_attentions=True gives no maps with this implementation; use capture_maps in its place")
    places = [(capture, place) for capture in _captures if (place := capture.place(module)) is not None]
    output = None
    if places:
        _refuse(module, _NOT_SHOWN, others)
        _check_window(module, others.get("sliding_window"), attention_mask, key)
        device = query.device
        q, k, v, settings, hidden = _arguments(module, query, key, value, attention_mask, scaling, is_causal)
        for capture, place in places:
            rows = capture.rows.of(q.shape[2], device, place[0])
            if output is None and not dropout:
                output, found = attention_with_map(q, k, v, rows=rows, **settings)
                output = output.transpose(1, 2)
            else:
                found = attention_map(q, k, rows=rows, **settings)
            capture.add(place, F.pad(found, (0, hidden)) if hidden else found)
    if output is None:
        mask = {"attention_mask": attention_mask, "is_causal": is_causal}
        output, _ = sdpa(module, query, key, value, **mask, dropout=dropout, scaling=scaling, **others)
    return output, None


def _arguments(module, query, key, value, attention_mask, scaling, is_causal):
    """q, k and v for our ops, their settings, and the number of keys at the end that no row sees."""
    device = query.device.type
    if torch.is_autocast_enabled(device):  # torch does the same to what its own attention is given
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    length, keys = query.shape[2], key.shape[2]
    # The rules of sdpa: no mask means causal where the module is, but for the one token of a decoding step.
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = bool(is_causal) and attention_mask is None and length > 1
    hidden = 0
    if is_causal and keys > length:  # an empty static cache: its later places are no keys yet
        key, value, hidden = key[:, :, :length], value[:, :, :length], keys - length
    batch = max(query.shape[0], key.shape[0])  # the queries of a Q-Former may be one for all samples
    query, key, value = (x if x.shape[0] == batch else x.expand(batch, -1, -1, -1) for x in (query, key, value))
    return query, key, value, {"attn_mask": attention_mask, "is_causal": is_causal, "scale": scaling}, hidden


def _refuse(module: nn.Module, names: Iterable[str], given: dict) -> None:
    for name in names:
        if given.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} attends with {name}, which "
                f"{'sdpa does not compute' if name in _NOT_COMPUTED else 'a captured map would not show'}; "
                "set the attention implementation of this part of the model to 'eager'"
            )


def _check_window(module: nn.Module, window: int | None, attention_mask: Tensor | None, key: Tensor) -> None:
    # The window is in the mask, where there is one.
    if window is not None and attention_mask is None and key.shape[2] > window:
        raise ValueError(f"{type(module).__name__} attends to the last {window} keys but gave no mask that says so")


def _check_model(model: nn.Module) -> None:
    parts = {}
    for name, module in model.named_modules():
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if implementation is not None:
            parts.setdefault(f"{type(module.config).__name__}", implementation)
        if implementation in _registered and getattr(module, "_supports_sdpa", True) is False:
            raise ValueError(
                f"capture_maps: {type(module).__name__} ({name or 'the model'}) has an attention of its own that sdpa is "
                "not; set its attention implementation to 'eager'"
            )
    if not _registered & set(parts.values()):
        found = ", ".join(f"{part}: {implementation}" for part, implementation in parts.items()) or "no configuration"
        raise ValueError(
            f"capture_maps: no part of {type(model).__name__} runs with {sorted(_registered) or 'a registered name'} "
            f"({found}); call register() and model.set_attn_implementation('cpgr')"
        )


def _as_set(values, single: type) -> set:
    return {values} if isinstance(values, single) else set(values)
