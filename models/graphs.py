"""ONNX graphs of a sentence encoder: the float32 one, the one that multiplies in int8, and a packed vocabulary table.

ONNX Runtime needs a third of torch's memory to serve them. ``onnx`` and torch are needed here, at build time only.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT_GRAPH = Path("onnx") / "model.onnx"
INT8_GRAPH = Path("onnx") / "model_int8.onnx"
_OPSET = 17
_BLOCK = 32
_TABLE = "word_embeddings.weight"


def export_onnx(folder: Path, weight_bits: int, packed_table: bool = False) -> None:
    """Write both graphs of a sentence-transformers folder: mean pooling and normalisation, any batch and length.

    ``weight_bits``: 4 or 8, what the int8 graph keeps its matrices in. ``packed_table``: keep the vocabulary table at
    the 4 bits that it came in (see ``pack_table``), in both graphs.
    """
    import onnx

    (folder / "onnx").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "model.onnx"
        _export(folder, plain)
        graph = onnx.load(str(plain))
    if packed_table:
        pack_table(graph)
    onnx.save(graph, str(folder / FLOAT_GRAPH))
    onnx.save(quantize(graph, weight_bits), str(folder / INT8_GRAPH))


def _export(folder: Path, target: Path) -> None:
    import torch
    from transformers import AutoModel

    # Eager attention: the fused kernel's graph has no exact counterpart in ONNX.
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    sample = torch.ones(2, 16, dtype=torch.long)
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter warns that it is the older one; see below.
        torch.onnx.export(
            Sentence(),
            (sample, sample),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes},
            opset_version=_OPSET,
            # The newer exporter gives a graph whose vectors are wrong here (cosine about 0); the check would refuse it.
            dynamo=False,
        )


def quantize(graph: Any, bits: int, level: int = 4) -> Any:
    """The graph with every product by a fixed matrix in integers: blocks of 32 weights of 4 or 8 bits with a scale.

    At ``level`` 4 activations are int8, by blocks of 32 as well. So a text's vector does not depend on its batch, which
    it does with ``quantize_dynamic`` (one scale for a whole tensor), and matrices that came in 4-bit blocks lose
    nothing. Measured in docs/decisions/0008-embedder.md.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    opsets = {used.domain: used.version for used in graph.opset_import}
    choices = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, accuracy_level=level, bits=bits)
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    logger.setLevel(logging.ERROR)  # A line for every node, and a warning about the opset, which is set right below.
    quantizer = MatMulNBitsQuantizer(graph, algo_config=choices)
    quantizer.process()
    made = quantizer.model.model
    for used in made.opset_import:
        # It raises the version without rewriting the nodes; the new ones are in a domain of their own.
        used.version = opsets.get(used.domain, used.version)
    return made


def pack_table(graph: Any) -> None:
    """Replace the vocabulary's float32 table by 4-bit blocks that ONNX Runtime unpacks row by row, in place.

    Without loss for a table that was made of such blocks. Raises ValueError for any other.
    """
    from onnx import TensorProto, helper, numpy_helper

    table = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith(_TABLE))
    node = next(node for node in graph.graph.node if node.op_type == "Gather" and node.input[0] == table.name)
    values, scales = blocks(numpy_helper.to_array(table))
    low, high = values[:, 0::2].astype(np.uint8) & 0x0F, values[:, 1::2].astype(np.uint8) & 0x0F
    packed = helper.make_tensor(
        f"{table.name}.int4", TensorProto.INT4, values.shape, (low | (high << 4)).tobytes(), raw=True
    )
    factors = numpy_helper.from_array(scales, f"{table.name}.scales")
    unpack = helper.make_node(
        "GatherBlockQuantized",
        [packed.name, node.input[1], factors.name],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=_BLOCK,
    )
    place = list(graph.graph.node).index(node)
    graph.graph.node.remove(node)
    graph.graph.node.insert(place, unpack)
    graph.graph.initializer.remove(table)
    graph.graph.initializer.extend([packed, factors])
    if not any(used.domain == "com.microsoft" for used in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph.ir_version = max(graph.ir_version, 10)  # The first that has int4 tensors.


def blocks(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Q4_0 blocks of a float32 table [rows, columns]: values -8..7 [rows, columns], scales [rows, columns / 32].

    The weight of greatest size in a block is -8 times its scale. Raises ValueError if the table is not made so.
    """
    parts = table.reshape(len(table), -1, _BLOCK)
    greatest = np.take_along_axis(parts, np.abs(parts).argmax(axis=2)[:, :, None], axis=2)
    scales = greatest / np.float32(-8.0)
    values = np.rint(np.divide(parts, scales, out=np.zeros_like(parts), where=scales != 0))
    # Half precision on disk rounds a weight by one part in two thousand.
    if not np.allclose(values * scales, parts, rtol=2e-3, atol=1e-6) or values.min() < -8 or values.max() > 7:
        raise ValueError("the vocabulary table is not made of 4-bit blocks")
    return values.reshape(table.shape).astype(np.int8), scales[:, :, 0].astype(np.float32)
