"""Who else can load the folder: is every parameter of the model's own class there, in a form it reads?

A quantized parameter ``P`` is stored as ``P_packed``, ``P_scale``, ``P_minimum`` (and ``P_shape``, which
compressed-tensors reads), or, in rows of 8 bits, as ``P`` and ``P_scale``. Symmetric linear layers are its
``pack-quantized`` format as they are, rows of 8 bits its ``int-quantized`` and ``float-quantized``; what else
may stand in the way is said in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..program.program import Arg, Node, Program, WeightRef
from ..weights.store import LazyWeight, TensorWeight
from .tensors import stored_bytes

PACKED, CODES, SCALE, MINIMUM, SHAPE = "_packed", "", "_scale", "_minimum", "_shape"
ROW_WISE = {"i8": "int-quantized", "f8": "float-quantized"}
"""Type of the rows of ``row_wise_linear`` → compressed-tensors' name of the form."""
_UNUSED_SHARE = 0.05  # of all bytes: parameters that only other loaders want are kept up to this
_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class PackedParameter:
    """A parameter that the graph reads in packed form.

    Attributes:
        op: the operation that reads it, ``optpipe.quant_linear``.
        bits, group: of its grid.
        minimum: whether the grid has one.
        shape: of its values, outputs first.
        format: compressed-tensors' name of the form.
    """

    op: str
    bits: int
    group: int
    minimum: bool
    shape: tuple[int, ...]
    format: str = "pack-quantized"

    @property
    def parts(self) -> tuple[str, ...]:
        """What the names of its tensors end in."""
        if self.format in ROW_WISE.values():
            return (CODES, SCALE)
        return (PACKED, SCALE, MINIMUM) if self.minimum else (PACKED, SCALE)


@dataclass(frozen=True)
class Obstacle:
    """Why a folder does not load.

    Attributes:
        reason: a part of a sentence.
        parameter: the first parameter that is concerned, or None.
    """

    reason: str
    parameter: str | None = None


@dataclass(frozen=True)
class HfForm:
    """What others make of the folder.

    Attributes:
        load_obstacle: why transformers cannot load it as it is, or None.
        export_obstacle: why not even dequantized weights make a folder it can load, or None.
        config: the content of config.json.
        extra: tensors that only other loaders read.
        foreign: weights of the graph that no module knows.
        transposed: packed parameters whose module holds inputs first.
    """

    load_obstacle: Obstacle | None
    export_obstacle: Obstacle | None
    config: dict[str, Any]
    extra: dict[str, LazyWeight]
    foreign: frozenset[str]
    transposed: tuple[str, ...]


def hf_form(
    program: Program,
    weights: Mapping[str, LazyWeight],
    model: nn.Module | None,
    checkpoint: Mapping[str, LazyWeight],
    config: Mapping[str, Any],
) -> HfForm:
    """Compare what the graph reads with what the model's modules hold.

    Args:
        weights: the values of the graph's weights.
        model: the model's own class; its parameters are not read. None when there is none.
        checkpoint: the source's values, by parameter name; an unchanged weight is the same object here.
        config: the content of the source's config.json.
    """
    if model is None:
        unknown = Obstacle("the model's own modules are not known")
        return HfForm(unknown, unknown, dict(config), {}, frozenset(), ())
    packed = packed_parameters(program)
    extra = _unused(program, packed, model, checkpoint)
    known = set(checkpoint) | {name + part for name in packed for part in packed[name].parts}
    export_obstacle = _export_obstacle(program, packed, weights, model, checkpoint, extra)
    load_obstacle = export_obstacle or _packed_obstacle(packed, model)
    plain = [weights[name] for name in program.weights if name in checkpoint]
    content = dict(config) | {"dtype": _dtype([*plain, *extra.values()])}
    content.pop("torch_dtype", None)
    if any(name in packed for name in _tied_heads(model)):
        content["tie_word_embeddings"] = False
    if packed and load_obstacle is None:
        content["quantization_config"] = _quantization(packed, model)
        shapes = {
            name + SHAPE: TensorWeight(torch.tensor(item.shape))
            for name, item in packed.items()
            if PACKED in item.parts
        }
        extra = {**extra, **shapes}
    transposed = tuple(name for name in packed if _transposed(model, name))
    return HfForm(
        load_obstacle, export_obstacle, content, extra, frozenset(program.weights) - known, transposed
    )


def packed_parameters(program: Program) -> dict[str, PackedParameter]:
    """Every parameter that the program reads packed, by its name in the model."""
    found: dict[str, PackedParameter] = {}
    for node in program.nodes:
        found.update(_rows(program, node))
        for words, scale, minimum in _packed_operands(node):
            name = words.removesuffix(PACKED)
            bits, group = node.kwargs["bits"], node.kwargs["group"]
            assert isinstance(bits, int), f"{node.op}: {bits = }"
            assert isinstance(group, int), f"{node.op}: {group = }"
            shape = tuple(int(dim) for dim in program.weights[words].type.shape)
            columns = shape[-1] * 32 // bits
            item = PackedParameter(node.op, bits, group, minimum, (*shape[:-1], columns))
            if words != name + PACKED or scale != name + SCALE:
                item = PackedParameter("", bits, group, minimum, item.shape)  # named by no convention
            # a table that is read both ways counts as an embedding, the stricter of the two
            if name not in found or found[name].op == "optpipe.quant_linear":
                found[name] = item
    return found


def _rows(program: Program, node: Node) -> Iterator[tuple[str, PackedParameter]]:
    """The weight of rows of 8 bits, where a node reads one."""
    weight = node.args[1] if node.op == "optpipe.row_wise_linear" else None
    if isinstance(weight, WeightRef) and program.weights[weight.name].stored in ROW_WISE:
        stored = program.weights[weight.name]
        op = node.op if node.args[2] == WeightRef(weight.name + SCALE) else ""  # "": named by no convention
        shape = tuple(int(dim) for dim in stored.type.shape)
        yield weight.name, PackedParameter(op, 8, -1, False, shape, ROW_WISE[stored.stored])


def _packed_operands(node: Node) -> Iterator[tuple[str, str, bool]]:
    """(words, scale, has a minimum) of every packed operand."""
    starts = {"optpipe.quant_linear": (1,), "optpipe.quant_embedding": (1,), "optpipe.quant_moe": (3, 6)}
    for at in starts.get(node.op, ()):
        words, scale = node.args[at], node.args[at + 1]
        minimum: Arg = node.args[at + 2] if len(node.args) > at + 2 else node.kwargs.get("minimum")
        if isinstance(words, WeightRef) and isinstance(scale, WeightRef):
            yield words.name, scale.name, minimum is not None


def _tie_groups(model: nn.Module) -> list[list[str]]:
    """Names of parameters and saved buffers, tied ones together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _tied_heads(model: nn.Module) -> Iterator[str]:
    """Names that were tied to a name before them: where one of them is packed, the tie is undone."""
    for first, *others in _tie_groups(model):
        del first
        yield from others


def _unused(
    program: Program,
    packed: Mapping[str, PackedParameter],
    model: nn.Module,
    checkpoint: Mapping[str, LazyWeight],
) -> dict[str, LazyWeight]:
    """Parameters that the graph does not read and the model's class wants all the same."""
    unused = {
        names[0]: checkpoint[names[0]]
        for names in _tie_groups(model)
        if names[0] in checkpoint and not any(name in program.weights or name in packed for name in names)
    }
    total = sum(weight.bytes for weight in program.weights.values())
    wanted = sum(stored_bytes(weight) for weight in unused.values())
    return unused if wanted <= _UNUSED_SHARE * total else {}


def _export_obstacle(
    program: Program,
    packed: Mapping[str, PackedParameter],
    weights: Mapping[str, LazyWeight],
    model: nn.Module,
    checkpoint: Mapping[str, LazyWeight],
    extra: Mapping[str, LazyWeight],
) -> Obstacle | None:
    if not type(model).__module__.startswith("transformers."):
        return Obstacle(
            f"{type(model).__name__} has Python code of its own, which an artifact does not carry"
        )
    for name, item in packed.items():
        if not item.op:
            return Obstacle(f"the packed weight '{name}' is not named after a parameter of the model", name)
    for names in _tie_groups(model):
        plain = [name for name in names if name in program.weights or name in extra]
        if not plain and not any(name in packed for name in names):
            return Obstacle(f"the graph no longer holds the parameter '{names[0]}'", names[0])
        for name in plain:
            if name in packed:
                continue
            if name in program.weights and weights[name] is not checkpoint.get(name):
                return Obstacle(f"the values of '{name}' were changed", name)
        if names[0] not in plain and names[0] not in packed:
            return Obstacle(f"of '{names[0]}' and '{names[1]}', tied in the model, one is stored", names[0])
    return None


def _packed_obstacle(packed: Mapping[str, PackedParameter], model: nn.Module) -> Obstacle | None:
    for name, item in packed.items():
        home = _module(model, name)
        if item.op == "optpipe.quant_embedding":
            reason = f"the embedding '{name}' is packed, and compressed-tensors packs linear layers only"
        elif item.op == "optpipe.quant_moe":
            reason = f"the experts '{name}' are packed, and transformers reads packed linear layers only"
        elif item.minimum:
            reason = f"'{name}' has a float minimum a group, for which compressed-tensors has no form"
        elif not isinstance(home, nn.Linear) or not name.endswith(".weight"):
            reason = f"'{name}' is packed and belongs to a {type(home).__name__}, not to a Linear"
        else:
            continue
        return Obstacle(reason, name)
    return None


def _module(model: nn.Module, parameter: str) -> nn.Module | None:
    home, _, _ = parameter.rpartition(".")
    try:
        return model.get_submodule(home)
    except AttributeError:
        return None


def _transposed(model: nn.Module, parameter: str) -> bool:
    """Whether the module of a packed parameter holds it inputs first, as GPT-2's Conv1D does."""
    home = _module(model, parameter)
    return type(home).__name__ == "Conv1D" or bool(getattr(home, "is_transposed", False))


def _dtype(plain: Iterable[LazyWeight]) -> str:
    """The narrowest dtype that loses nothing of the weights stored plain."""
    found = {weight.dtype for weight in plain if weight.dtype in _DTYPES}
    joined = torch.float16 if not found else found.pop()
    for dtype in found:
        joined = torch.promote_types(joined, dtype)
    return _DTYPES[joined]


def _quantization(packed: Mapping[str, PackedParameter], model: nn.Module) -> dict[str, Any]:
    """``quantization_config`` in the form of compressed-tensors: one group a scheme."""
    schemes: dict[tuple[str, int, int], list[str]] = {}
    for name, item in packed.items():
        schemes.setdefault((item.format, item.bits, item.group), []).append(name.removesuffix(".weight"))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    quantized = {name for names in schemes.values() for name in names}
    groups = {
        f"group_{index}": {
            "targets": _targets(names, linears),
            "weights": _scheme(form, bits, group),
            "input_activations": _activations(form),
            "output_activations": None,
            "format": form,
        }
        for index, ((form, bits, group), names) in enumerate(schemes.items())
    }
    formats = {form for form, _, _ in schemes}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _targets([name for name in linears if name not in quantized], linears),
    }


def _activations(form: str) -> dict[str, Any] | None:
    """Activations of rows of 8 bits: a scale a token, when it comes."""
    if form not in ROW_WISE.values():
        return None
    return _scheme(form, 8, -1) | {"strategy": "token", "dynamic": True}


def _scheme(form: str, bits: int, group: int) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "float" if form == ROW_WISE["f8"] else "int",
        "symmetric": True,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
        "dynamic": False,
    }


def _targets(names: Iterable[str], linears: Iterable[str]) -> list[str]:
    """Names as few patterns: layer numbers become ``\\d+`` where that means no other linear layer.

    >>> _targets(["h.0.q", "h.1.q", "h.1.k"], ["h.0.q", "h.1.q", "h.0.k", "h.1.k"])
    ['re:h\\\\.\\\\d+\\\\.q$', 'h.1.k']
    """
    wanted = set(names)
    result: dict[str, None] = {}
    every = list(linears)
    for name in names:
        pattern = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) + "$"
        alike = {other for other in every if re.match(pattern, other)}
        result[f"re:{pattern}" if len(alike) > 1 and alike <= wanted else name] = None
    return list(result)
