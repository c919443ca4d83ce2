"""A float32 ONNX graph in half precision, norms and sums kept in float32: the cast is in the graph, for libraries that type strongly.

A float32 value keeps its name where it is there in float32, and goes by `NAME.half` where it is there in half precision; casts stand
where the one is there and the other is wanted. Input and output of the whole stay float32.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx

FULL_OPERATORS: Final = frozenset(
    """InstanceNormalization GroupNormalization LayerNormalization BatchNormalization LpNormalization MeanVarianceNormalization
    ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp Softmax LogSoftmax Exp Log Pow Sqrt Reciprocal Erf
    CumSum Range""".split()
)
"""What overflows or loses its sense in half precision: statistics, exponents, long sums."""

_FULL_INPUTS: Final = {"Resize": frozenset({1, 2}), "Upsample": frozenset({1})}
"""Inputs that are float32 by the definition of their operator, whatever the values are."""

_FLOAT: Final = 1  # TensorProto.FLOAT
_TYPES: Final = {"fp16": 10, "bf16": 16}  # TensorProto.FLOAT16, BFLOAT16


def to_half(content: bytes, precision: str) -> bytes:
    """Answers the ONNX file `content` with everything in `precision` (fp16, bf16) that may be."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), check_type=True, data_prop=True)
    _Casting(model.graph, _TYPES[precision]).run()
    del model.graph.value_info[:]  # they name types that are no more
    # Some operators of the exporter's opset take bfloat16 in later opsets only; the libraries that we build for take it all the same.
    onnx.checker.check_model(model, full_check=precision == "fp16")
    half: bytes = model.SerializeToString(deterministic=True)
    return half


class _Casting:
    """One pass over a graph, whose nodes stand in the order of computation."""

    def __init__(self, graph: "onnx.GraphProto", half: int) -> None:
        self._graph = graph
        self._half = half
        self._nodes: list[onnx.NodeProto] = []
        self._weights = {one.name: one for one in graph.initializer if one.data_type == _FLOAT}
        values = (*graph.value_info, *graph.input, *graph.output)
        self._floats = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT} | set(self._weights)
        self._there = {value.name for value in graph.input} | set(self._weights)
        """Names of float values that are there by now, `.half` or not."""

    def run(self) -> None:
        for node in list(self._graph.node):
            self._take(node)
        for value in self._graph.output:
            self._full(value.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [one for one in self._graph.initializer if one.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _take(self, node: "onnx.NodeProto") -> None:
        full = _FULL_INPUTS.get(node.op_type, frozenset())
        is_half = node.op_type not in FULL_OPERATORS and any(name in self._floats for name in node.output)
        for place, name in enumerate(node.input):
            if name in self._floats:
                node.input[place] = self._halved(name) if is_half and place not in full else self._full(name)
        if is_half:
            self._type_attributes(node)
        for place, name in enumerate(node.output):
            if name in self._floats:
                node.output[place] = f"{name}.half" if is_half else name
                self._there.add(node.output[place])
        self._nodes.append(node)

    def _type_attributes(self, node: "onnx.NodeProto") -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = self._half
            elif attribute.name == "value" and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(self._as_half(attribute.t, attribute.t.name))

    def _full(self, name: str) -> str:
        if name not in self._there:
            self._cast(f"{name}.half", name, _FLOAT)
        return name

    def _halved(self, name: str) -> str:
        half = f"{name}.half"
        if half not in self._there:
            if name in self._weights:
                self._graph.initializer.append(self._as_half(self._weights[name], half))
                self._there.add(half)
            else:
                self._cast(name, half, self._half)
        return half

    def _cast(self, source: str, target: str, data_type: int) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"cast.{target}", to=data_type))
        self._there.add(target)

    def _as_half(self, tensor: "onnx.TensorProto", name: str) -> "onnx.TensorProto":
        from onnx import helper, numpy_helper

        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(self._half))
        return numpy_helper.from_array(values, name)
