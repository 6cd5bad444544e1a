"""The packed vocabulary table and the int8 graph, run by ONNX Runtime against the float32 ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import graphs


def blocked(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """A table of two blocks a row; the first row is zero."""
    random = np.random.default_rng(seed)
    values = random.integers(-8, 8, (rows, 2, 32))
    values[:, :, 5] = -8
    scales = random.uniform(0.01, 0.1, (rows, 2, 1)).astype(np.float16).astype(np.float32)
    scales[0] = 0
    return (values * scales).astype(np.float32).reshape(rows, 64)


def graph(table: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32]) -> Any:
    nodes = [
        helper.make_node("Gather", ["word_embeddings.weight", "ids"], ["rows"], name="gather"),
        helper.make_node("MatMul", ["rows", "matrix"], ["out"], name="product"),
    ]
    tensors = [numpy_helper.from_array(table, "word_embeddings.weight"), numpy_helper.from_array(matrix, "matrix")]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", matrix.shape[1]])
    made = helper.make_graph(nodes, "tiny", [ids], [out], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {"ids": np.array(ids, np.int64)})[0]
    return found


def test_a_table_of_blocks_is_packed_without_loss() -> None:
    table, matrix = blocked(10, 1), np.eye(64, dtype=np.float32)
    model = graph(table, matrix)
    graphs.pack_table(model)
    onnx.checker.check_model(model)
    assert np.array_equal(run(model, [0, 3, 9]), table[[0, 3, 9]])


def test_any_other_table_is_refused() -> None:
    table = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32)
    with pytest.raises(ValueError, match="4-bit blocks"):
        graphs.blocks(table)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_int8_product_is_near_and_the_same_in_any_company(bits: int) -> None:
    table, matrix = blocked(10, 3), np.ascontiguousarray(blocked(48, 4).T)
    exact, model = run(graph(table, matrix), list(range(10))), graphs.quantize(graph(table, matrix), bits)
    assert {node.op_type for node in model.graph.node} == {"Gather", "MatMulNBits"}
    whole = run(model, list(range(10)))
    assert np.abs(whole - exact).max() < 0.02 * np.abs(exact).max()
    assert np.allclose(run(model, [7])[0], whole[7], atol=1e-6)
