"""An ONNX model under construction: nodes, constants, and weights that go to the disk as they come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

MICROSOFT = "com.microsoft"
_IR_VERSION = 11  # the oldest that may use opset 23 and 24
_EXTERNAL = 1 << 10  # bytes from which on a tensor lies outside the model file
_ALIGNMENT = 4096  # of tensors in the data file, so that a runtime can map it


class ModelWriter:
    """Collects a graph; its large tensors are written at once, so that one is in memory at a time.

    Args:
        folder: where the data file goes.
        data_name: its name.
        opset: of the standard operators.
    """

    def __init__(self, folder: Path, data_name: str, opset: int) -> None:
        self._folder, self._data_name, self._opset = folder, data_name, opset
        self._data = (folder / data_name).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, int] = {}
        self._shared: dict[tuple[str, int], int] = {}  # offsets of what several tensors hold
        self._domains = {""}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Declare an input of the model."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Declare an output of the model."""
        self._outputs.append(_value_info(name, dtype, shape))

    def node(
        self,
        op: str,
        inputs: Sequence[str | None],
        *,
        path: str = "",
        outputs: Sequence[str] | int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; its name is the module's path and the operator.

        Args:
            inputs: names; None leaves an optional one out.
            outputs: names, of which an empty one leaves the output out, or how many to make up.

        Returns:
            the names of its outputs.
        """
        name = self.fresh(path, op)
        if isinstance(outputs, int):
            outputs = [name if outputs == 1 else f"{name}:{i}" for i in range(outputs)]
        self._domains.add(domain)
        given = ["" if it is None else it for it in inputs]
        while given and not given[-1]:
            given.pop()
        known = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(helper.make_node(op, given, list(outputs), name=name, domain=domain, **known))
        return list(outputs)

    def constant(self, values: Any, dtype: Any = None) -> str:
        """The name of a small constant; equal ones share it."""
        array = np.array(values, dtype, order="C")  # ascontiguousarray would make a scalar a row
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(self._unique("constant"), array)
        return self._constants[key]

    def tensor(self, name: str, array: NDArray[Any], *, data_of: str | None = None) -> str:
        """Add an initializer under a name of its own.

        Args:
            data_of: tensors that give the same word here hold the same bytes, which are written once.
        """
        array = np.asarray(array, order="C")
        return self._add(name, element_type(array.dtype), array.shape, array, data_of)

    def packed_tensor(self, name: str, data: NDArray[np.uint8], shape: Sequence[int], bits: int) -> str:
        """Add an initializer of unsigned codes, two to a byte when they have 4 bits."""
        kind = TensorProto.UINT4 if bits == 4 else TensorProto.UINT8
        return self._add(name, kind, tuple(shape), np.ascontiguousarray(data), None)

    def _add(
        self, name: str, kind: int, shape: tuple[int, ...], array: NDArray[Any], data_of: str | None
    ) -> str:
        if name in self._tensors:
            return name
        proto = TensorProto(name=name, data_type=kind, dims=shape)
        if array.nbytes < _EXTERNAL:
            proto.raw_data = array.tobytes()
        else:
            proto.data_location = TensorProto.EXTERNAL
            place = {
                "location": self._data_name,
                "offset": self._write(array, data_of),
                "length": array.nbytes,
            }
            for key, value in place.items():
                proto.external_data.add(key=key, value=str(value))
        self._tensors[name] = proto
        return name

    def _write(self, array: NDArray[Any], data_of: str | None) -> int:
        """Put bytes into the data file, and say where."""
        key = None if data_of is None else (data_of, array.nbytes)
        if key is not None and key in self._shared:
            return self._shared[key]
        self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
        offset = self._data.tell()
        self._data.write(array.data)
        if key is not None:
            self._shared[key] = offset
        return offset

    def rename(self, old: str, new: str) -> None:
        """Call the output of a node otherwise, everywhere."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def has_tensor(self, name: str) -> bool:
        """Whether there is an initializer of that name."""
        return name in self._tensors

    def save(self, name: str, *, metadata: Mapping[str, str]) -> Path:
        """Write the model file beside the data.

        Raises:
            onnx.checker.ValidationError: the model is not one.
        """
        self._data.flush()
        nodes, inputs, tensors = self._needed()
        graph = helper.make_graph(nodes, "optpipe", inputs, self._outputs, tensors)
        versions = [helper.make_opsetid(it, self._opset if it == "" else 1) for it in sorted(self._domains)]
        model = helper.make_model(
            graph, opset_imports=versions, producer_name="optpipe", ir_version=_IR_VERSION
        )
        helper.set_model_props(model, dict(metadata))
        path = self._folder / name
        onnx.save_model(model, str(path))
        onnx.checker.check_model(str(path))
        return path

    def _needed(self) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto], list[TensorProto]]:
        """The nodes, inputs and tensors that an output depends on."""
        wanted = {it.name for it in self._outputs}
        nodes = []
        for node in reversed(self._nodes):
            if not wanted.isdisjoint(node.output):
                nodes.append(node)
                wanted.update(node.input)
        inputs = [it for it in self._inputs if it.name in wanted]
        return nodes[::-1], inputs, [it for name, it in self._tensors.items() if name in wanted]

    def fresh(self, path: str, what: str) -> str:
        """A name for an output that nothing else has."""
        return self._unique("/".join(filter(None, (path.replace(".", "/"), what))))

    def _unique(self, name: str) -> str:
        name = re.sub(r"[^A-Za-z0-9_./:\-]", "_", name)
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name


def element_type(dtype: Any) -> int:
    """ONNX's number of a numpy dtype."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value_info(name: str, dtype: Any, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(dtype), list(shape))
