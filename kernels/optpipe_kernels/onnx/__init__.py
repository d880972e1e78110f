"""ONNX: the same artifact as a model for ONNX Runtime.

    export.py      a folder: model.onnx, its weights beside it, genai_config.json
    convert.py     Program → model, one rule an operation
    rules/         the rules: ATen, the dialect, attention, experts
    model.py       the model under construction: nodes, constants, weights on their way to the disk
    rotary.py      cos and sin of every position, worked out once
    target.py      the ``onnx`` target: the exported model behind the executor protocol

The packed tokens of a Program, [T, ...], are the flattened [batch, sequence] of an ONNX model: only attention
sees rows and columns.
"""
