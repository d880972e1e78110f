"""Tiny random models of the architectures that transformers knows.

    tiny_names()                    the hand-made set: one name an architecture (or a variant of one)
    tiny_model("gemma2")            an eval float32 model of a few hundred kilobytes, always the same weights
    tiny_model("glm4")              any other model type of the causal-LM mapping, shrunk
    save_tiny("gemma2", folder)     a model folder with safetensors and a tokenizer

The hand-made set is tuned (``architectures.py``); the others follow rules (``shrink.py``).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ModelError, nearest
from .architectures import ARCHITECTURES, PROBE_TOKENS

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from ..weights.store import Weights


def tiny_names() -> list[str]:
    """The hand-made set, in the order of its table."""
    return list(ARCHITECTURES)


def mapping_names() -> list[str]:
    """Every model type of transformers' causal-LM mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> PretrainedConfig:
    """The configuration of a tiny model: a hand-made one, or any model type's own, shrunk.

    Raises:
        ModelError: there is no such name.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from .shrink import shrunk_config

    if name in ARCHITECTURES:
        model_type, values = ARCHITECTURES[name]
        return cast("PretrainedConfig", CONFIG_MAPPING[model_type](**values))
    if name in CONFIG_MAPPING:
        return shrunk_config(name)
    raise ModelError(
        f"there is no tiny model named '{name}'", hint=nearest(name, [*tiny_names(), *mapping_names()])
    )


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random causal language model: eval mode, float32, eager attention, logits spread near one.

    Args:
        name: one of ``tiny_names()``, or any model type of the causal-LM mapping.
        seed: of the weights.

    Raises:
        ModelError: there is no such name.
    """
    return model_of(tiny_config(name), seed)


def model_of(config: PretrainedConfig, seed: int = 0, **attention: Any) -> PreTrainedModel:
    """A random model of any configuration, as ``tiny_model`` makes them."""
    import torch
    from transformers import AutoModelForCausalLM

    from .randomize import randomize, scale_logits

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about configurations no one would train
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention).eval()
        randomize(model, seed)
        scale_logits(model, probe_tokens(config, seed=seed))
    return cast("PreTrainedModel", model)


def weights_of(model: PreTrainedModel) -> Weights:
    """A model's parameters and saved buffers as a weight store, under the model's own names."""
    from ..weights.store import LazyWeight, TensorWeight, Weights

    store = Weights()
    ties: dict[int, LazyWeight] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.state_dict(keep_vars=True).items(),
    ]:
        store[name] = ties.setdefault(id(tensor), TensorWeight(tensor))
    return store


def probe_tokens(config: PretrainedConfig, tokens: int = PROBE_TOKENS, seed: int = 0) -> torch.Tensor:
    """Random token ids i64[1, T] that a model of ``config`` takes, special tokens left out."""
    import torch

    text = config.get_text_config(decoder=True)
    special = [getattr(text, f"{role}_token_id", None) for role in ("pad", "bos", "eos")]
    allowed = [i for i in range(3, min(int(text.vocab_size), 256)) if i not in special]
    generator = torch.Generator().manual_seed(seed + 1)
    picks = torch.randint(len(allowed), (1, tokens), generator=generator)
    return torch.tensor(allowed)[picks]


def save_tiny(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write ``tiny_model(name, seed)`` as a model folder with a byte tokenizer; return the folder."""
    from .tokenizer import save_tokenizer

    folder = Path(folder)
    model = tiny_model(name, seed)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
