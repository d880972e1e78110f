"""A checkpoint larger than memory is opened and read one tensor at a time."""

import json
import struct
import subprocess
import sys

from optpipe.sources.model import empty_model

LAYERS, HIDDEN, WIDE = 24, 2048, 8192
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "tie_word_embeddings": True,
}
CODE = """
import resource, sys
from optpipe.sources import resolve

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

source = resolve(sys.argv[1])
opened = peak()
for weight in source.weights.values():
    assert float(weight.load().sum()) == 0
print(source.bytes >> 20, peak() - opened)
"""


def write_sparse(folder):
    """A bf16 checkpoint of zeros that takes no disk: the data is a hole."""
    header, at = {}, 0
    for name, tensor in empty_model(CONFIG).named_parameters():
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [at, at + 2 * tensor.numel()],
        }
        at += 2 * tensor.numel()
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def test_peak_memory_is_a_tensor_not_a_model(tmp_path):
    write_sparse(tmp_path)
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    model, grown = map(int, result.stdout.split())
    assert model > 3000, f"{model = } MB must be large"
    assert grown < 300, f"reading {model} MB one tensor at a time took {grown} MB; the largest has 32 MB"
