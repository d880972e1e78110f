"""The ``reference`` target: the graph on its ops' bodies, on any device torch has. Slow, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ..errors import CapacityError, RequestError
from ..graph.interpreter import Interpreter
from ..graph.nodes import args_of, input_name, is_call, is_tensor, value
from ..program import from_fx, to_fx
from ..program.early_exit import early_exit
from ..weights.cache import WeightCache, half_of_memory
from ..weights.store import Weights
from .protocol import CacheSpec, Ints, MemoryNeeds, StepInputs, StepResult
from .steps import INPUTS, Done, check_step, check_tokens, one_sequence


class ReferenceExecutor:
    """Runs a graph step by step.

    Args:
        gm: the graph, paged or not.
        weights: its values.
        device: where to compute.
        cache: keeps weights in memory between steps; by default up to half of what is free.
        rounds: see ``Interpreter``.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        weights: Weights,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        cache: WeightCache | None = None,
        rounds: bool = True,
    ) -> None:
        self._device = usable_device(device)
        self._kept = WeightCache(half_of_memory()) if cache is None else cache
        self._interpreter = Interpreter(gm, weights, dtype, self._device, self._kept, rounds)
        self._weights = weights
        self._parts: dict[int, Interpreter] = {}  # the model's first layers, by how many
        self._inputs = {input_name(node): node for node in gm.graph.nodes if node.op == "placeholder"}
        self._caches: dict[str, torch.Tensor] = {}
        output = next(node for node in gm.graph.nodes if node.op == "output").args[0]
        self.vocab_size = int(value(output).shape[-1])
        self.cache_spec = self._spec()

    batch_invariant = False  # torch picks another order of summation for another number of rows

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """The dtype that the graph is run in, and no other."""
        return ("f64" if self._interpreter.dtype is torch.float64 else "f32",)

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """See ``Executor.block_bytes``."""
        self._check_kv_dtype(kv_dtype)
        assert self.cache_spec is not None, "an artifact without a cache has no blocks"
        return self.cache_spec.block_bytes(self._interpreter.dtype.itemsize)

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """See ``Executor.memory``. Weights count as far as they are kept; the workspace is an estimate."""
        wide = self._interpreter.dtype.itemsize
        weights, widest = 0, 1
        for node in self._interpreter.gm.graph.nodes:
            kind = value(node)
            if node.op == "get_attr":
                weights += kind.numel() * (wide if kind.is_floating_point() else kind.dtype.itemsize)
            elif is_call(node, torch.ops.optpipe.quant_linear):  # its values are kept beside the words
                weights += value(args_of(node)[1]).numel() * (32 // int(node.kwargs["bits"])) * wide
            elif is_tensor(node) and kind.dim() == 2 and isinstance(kind.shape[-1], int):
                widest = max(widest, kind.shape[-1] if kind.shape[-1] < self.vocab_size else 1)
        # Rows of logits exist on the device and on the host; of the activations a handful live at once.
        workspace = wide * (2 * rows * self.vocab_size + 6 * tokens * widest)
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None
        return MemoryNeeds(min(weights, self._kept.budget), workspace, free)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """See ``Executor.allocate``."""
        self._check_kv_dtype(kv_dtype)
        self._caches = {}
        self._caches = self._new_caches(num_blocks)

    @property
    def num_layers(self) -> int:
        """See ``LayeredExecutor.num_layers``."""
        attention = torch.ops.optpipe.paged_attention
        return sum(is_call(node, attention) for node in self._interpreter.gm.graph.nodes)

    def prepare_layers(self, layers: int) -> None:
        """See ``LayeredExecutor.prepare_layers``. Weights that are kept are kept once."""
        if layers not in self._parts:
            whole = self._interpreter
            gm = to_fx(early_exit(from_fx(whole.gm), layers))
            self._parts[layers] = Interpreter(
                gm, self._weights, whole.dtype, self._device, self._kept, whole.rounds
            )

    def submit(self, step: StepInputs, *, logits: bool = True, layers: int | None = None) -> Done:
        """See ``LayeredExecutor.submit``. The step has run when this returns."""
        if self.cache_spec is None:
            raise RequestError(
                "The artifact is not paged, so it takes one whole sequence at a time.",
                hint="optimize it with --passes paged",
            )
        check_step(step, self._blocks(), self.cache_spec.block_size, self.vocab_size)
        arrays = {
            INPUTS.get(field.name, field.name): _tensor(getattr(step, field.name)) for field in fields(step)
        }
        rows = self._run(arrays, self._part(layers))
        if "logit_rows" not in self._inputs:
            rows = rows[arrays["logit_rows"].to(rows.device)]
        host = self._host(rows)
        return Done(StepResult(host.argmax(-1).astype(np.int64), host if logits else None))

    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """See ``Executor.logits``."""
        return self.logits_of([token_ids], [np.arange(len(token_ids)) if rows is None else rows])[0]

    def logits_of(
        self, sequences: Sequence[Ints], rows: Sequence[Ints], begins: Sequence[int] | None = None
    ) -> list[NDArray[Any]]:
        """Logits of several whole sequences, each as if it were alone, reading every weight once.

        Args:
            sequences: token ids [T] of each.
            rows: [R] of each, the tokens whose logits are wanted.
            begins: the position that each is told to begin from, with nothing before it; 0 when None.
        """
        begins = [0] * len(sequences) if begins is None else begins
        lanes = [self._whole(*lane) for lane in zip(sequences, rows, begins, strict=True)]
        outs = self._interpreter.run_many(lanes)
        batched = value(self._inputs["input_ids"]).dim() == 2
        results = []
        for out, wanted in zip(outs, rows, strict=True):
            out = out[0] if batched else out
            results.append(
                self._host(out if "logit_rows" in self._inputs else out[_tensor(wanted).to(out.device)])
            )
        return results

    def _whole(self, token_ids: Ints, rows: Ints, begin: int) -> dict[str, torch.Tensor]:
        """Inputs for one sequence, with a cache of its own. Only its positions are shifted by ``begin``."""
        check_tokens(token_ids, self.vocab_size)
        block = 1 if self.cache_spec is None else self.cache_spec.block_size
        step = one_sequence(token_ids, block)
        step = replace(step, logit_rows=rows, positions=step.positions + begin)
        arrays = {
            INPUTS.get(field.name, field.name): _tensor(getattr(step, field.name)) for field in fields(step)
        }
        if self.cache_spec is None:  # a graph that writes its cache but does not read it yet
            arrays["slot_mapping"] = torch.full_like(arrays["slot_mapping"], -1)
        if value(self._inputs["input_ids"]).dim() == 2:
            arrays = {name: tensor[None] for name, tensor in arrays.items()}
        known = {name: tensor for name, tensor in arrays.items() if name in self._inputs}
        return {**known, **self._new_caches(-(-len(token_ids) // block) if self.cache_spec else 1)}

    def _host(self, logits: torch.Tensor) -> NDArray[Any]:
        """Logits as an array: float32, or float64 when that is what the graph was run in."""
        wide = torch.promote_types(self._interpreter.dtype, torch.float32)
        array: NDArray[Any] = logits.to(wide).cpu().numpy()
        return array

    def _check_kv_dtype(self, kv_dtype: str | None) -> None:
        if kv_dtype is not None and kv_dtype not in self.kv_dtypes:
            raise CapacityError(
                f"The target 'reference' cannot keep its cache as '{kv_dtype}'.",
                hint=f"it has {self.kv_dtypes[0]} only",
            )

    def _new_caches(self, num_blocks: int) -> dict[str, torch.Tensor]:
        where: dict[str, Any] = {"dtype": self._interpreter.dtype, "device": self._device}
        try:
            return {
                name: torch.zeros((num_blocks, *value(node).shape[1:]), **where)
                for name, node in self._inputs.items()
                if node.meta.get("kind") == "cache"
            }
        except RuntimeError as error:
            raise CapacityError(f"A cache of {num_blocks} blocks does not fit on {self._device}.") from error

    def _part(self, layers: int | None) -> Interpreter:
        if layers is None:
            return self._interpreter
        self.prepare_layers(layers)
        return self._parts[layers]

    def _run(self, inputs: dict[str, torch.Tensor], interpreter: Interpreter) -> torch.Tensor:
        known = {name: tensor for name, tensor in inputs.items() if name in self._inputs}
        out: torch.Tensor = interpreter.run({**known, **self._caches})
        return out

    def _blocks(self) -> int:
        if not self._caches:
            raise CapacityError("The executor has no cache yet; allocate one first.")
        return int(next(iter(self._caches.values())).shape[0])

    def _spec(self) -> CacheSpec | None:
        if "block_tables" not in self._inputs:
            return None
        keys = {n: value(node).shape for n, node in self._inputs.items() if n.startswith("k_cache.")}
        layers = []
        for name, size in keys.items():
            other = value(self._inputs[name.replace("k_cache", "v_cache")]).shape
            layers.append((int(size[2]), int(size[3]), int(other[3])))
        return CacheSpec(int(next(iter(keys.values()))[1]), tuple(layers))


def _tensor(array: Ints) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        CapacityError: torch knows no such device, or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CapacityError(f"The device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device
