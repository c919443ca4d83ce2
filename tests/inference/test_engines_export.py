"""A network as ONNX: the same bytes every time, nothing of this machine in them, the same answers; and its half-precision form."""

import copy
import hashlib

import pytest
import torch
from monai.networks.nets import UNet

from node.inference.engines.onnx_export import NotExportable, Window, export_onnx, network_digest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'radnode[onnx]')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'radnode[onnx]')")

from node.inference.engines.half_precision import FULL_OPERATORS, to_half  # noqa: E402 - behind the skip

WINDOW = Window(1, (16, 16, 16))
FLOAT, FLOAT16 = 1, 10


def make_network(norm: str = "instance") -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (4, 8), (2,), num_res_units=1, norm=norm).eval()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return make_network()


@pytest.fixture(scope="module")
def exported(network: torch.nn.Module) -> bytes:
    return export_onnx(network, WINDOW)


def run(content: bytes, batch: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'radnode[onnxruntime]')")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"image": batch.numpy()})
    return torch.from_numpy(output)


def relative(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float((output - reference).norm() / reference.norm())


def test_the_same_network_gives_the_same_bytes(exported: bytes) -> None:
    again = export_onnx(make_network(), WINDOW)
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(exported).hexdigest()


def test_nothing_of_this_machine_is_in_the_file(exported: bytes) -> None:
    """The exporter writes stack traces and paths into every node."""
    for word in (b"site-packages", b"/work", b"File ", b".py", b"stack_trace", b"forward"):
        assert word not in exported, word
    model = onnx.load_from_string(exported)
    assert not model.metadata_props
    assert not [node.name for node in model.graph.node if node.metadata_props or node.doc_string]


@pytest.mark.parametrize("windows", [1, 3])
def test_it_answers_what_the_network_answers(network: torch.nn.Module, exported: bytes, windows: int) -> None:
    batch = torch.rand(WINDOW.batch(windows))
    with torch.inference_mode():
        assert relative(run(exported, batch), network(batch)) < 1e-5


def test_in_half_precision_norms_stay_float32_and_so_do_input_and_output(network: torch.nn.Module, exported: bytes) -> None:
    half = to_half(exported, "fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(half))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {types["image"], types["scores"]} == {FLOAT}
    for node in model.graph.node:
        wanted = FLOAT if node.op_type in FULL_OPERATORS else FLOAT16
        if node.op_type != "Cast":
            assert {types[name] for name in node.output} == {wanted}, node.name
    assert any(node.op_type == "InstanceNormalization" for node in model.graph.node)
    batch = torch.rand(WINDOW.batch(2))
    with torch.inference_mode():
        error = relative(run(half, batch), network(batch))
    assert 1e-6 < error < 2e-3


def test_the_half_form_is_half_as_large_and_the_same_every_time(exported: bytes) -> None:
    assert to_half(exported, "fp16") == to_half(exported, "fp16")
    assert len(to_half(exported, "fp16")) < 0.8 * len(exported)
    assert to_half(exported, "bf16") != to_half(exported, "fp16")


class TwoAnswers(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return batch, batch


class Undecided(torch.nn.Module):
    """Its way depends on the voxels."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch + 1 if batch.sum() > 0 else batch - 1


@pytest.mark.parametrize("kind", [TwoAnswers, Undecided])
def test_a_network_that_cannot_be_exported_says_so(kind: type[torch.nn.Module]) -> None:
    with pytest.raises(NotExportable):
        export_onnx(kind(), WINDOW)


def test_the_digest_follows_weights_structure_and_code(network: torch.nn.Module) -> None:
    same = make_network()
    assert network_digest(same) == network_digest(network)
    other_weights = copy.deepcopy(same)
    with torch.no_grad():
        next(other_weights.parameters()).view(-1)[0] += 1e-3
    assert network_digest(other_weights) != network_digest(network)
    assert network_digest(make_network("batch")) != network_digest(network)
    assert network_digest(TwoAnswers()) != network_digest(Undecided())
