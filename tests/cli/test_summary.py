"""Counting parameters, bytes and layers from the text of a graph."""

from optpipe.cli.summary import layer_nodes, layer_of, parts, summarize
from optpipe.program import parse_program

TEXT = """optpipe.program 1
input %input_ids: i64[T]
cache %k_cache.0: f32[P, 16, 3, 64]
weight @model.embed.weight: f32[100, 64] stored bf16
weight @model.layers.0.up.weight_packed: i32[96, 8] stored i32
weight @model.layers.0.up.weight_scale: f32[96, 2] stored f16
weight @model.layers.1.up.weight: f32[96, 64] stored f32
%0: f32[T, 64] = aten.embedding(@model.embed.weight, %input_ids)  # model.embed
%1: f32[T, 96] = optpipe.quant_linear(%0, @model.layers.0.up.weight_packed, @model.layers.0.up.weight_scale, \
bits=4, group=32)  # model.layers.0.up
%2: f32[T, 96] = aten.linear(%0, @model.layers.1.up.weight)  # model.layers.1.up
return %2
"""


def test_parameters_and_bytes_by_part():
    found = {it["part"]: it for it in parts(parse_program(TEXT))}
    assert found["model.embed"] == {
        "part": "model.embed",
        "parameters": 6400,
        "bytes": 12800,
        "stored": ["bf16"],
    }
    # Packed: 96 × 8 words of 8 values; scales are no parameters, and two bytes each.
    assert found["layers"]["parameters"] == 96 * 64 + 96 * 64
    assert found["layers"]["bytes"] == 96 * 8 * 4 + 96 * 2 * 2 + 96 * 64 * 4
    assert found["layers"]["stored"] == ["f32", "int4", "f16"]


def test_summary_counts_layers_caches_and_operations():
    facts = summarize(parse_program(TEXT))
    assert facts["layers"] == 2
    assert facts["caches"] == 1
    assert facts["symbols"] == ["T", "P"]
    assert facts["operations"] == {"aten.embedding": 1, "optpipe.quant_linear": 1, "aten.linear": 1}
    assert facts["inputs"] == {"input_ids": "i64[T]"}


def test_one_layer():
    assert [node.results[0].name for node in layer_nodes(parse_program(TEXT), 1)] == ["2"]
    assert layer_of("transformer.h.3.mlp") == 3
    assert layer_of("lm_head") is None
