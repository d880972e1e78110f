"""A model's modules without its weights: names, shapes and ties, for no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optpipe.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def empty_model(
    config: dict[str, Any],
    *,
    trust_remote_code: bool = False,
    code: Path | None = None,
    attn_implementation: str = "eager",
) -> PreTrainedModel:
    """The AutoModelForCausalLM of a config, in float32 and eval mode, with parameters nobody has written.

    Parameters are ``torch.empty``: their pages are never touched, so that they take address space and no
    memory. Buffers that no checkpoint has (inv_freq) are real. Tied parameters are one object. A config
    of several parts (text and vision) gives its text part where transformers has a class for that.

    Args:
        config: the content of a config.json.
        trust_remote_code: whether Python code that comes with the model may run.
        code: the folder with that code.

    Raises:
        ModelError: transformers has no causal language model for the config, or it needs foreign code.
    """
    from transformers import AutoModelForCausalLM

    parsed = parse_config(config, trust_remote_code=trust_remote_code, code=code)
    try:
        with _uninitialized():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                parsed,
                dtype=torch.float32,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # the model's constructor may raise anything on a wrong config
        raise ModelError(
            f"A '{config.get('model_type')}' model cannot be built from its config: {first_line(error)}"
        ) from error
    model.tie_weights()
    _fill_buffers(model)
    return model.eval()


def parse_config(
    config: dict[str, Any], *, trust_remote_code: bool = False, code: Path | None = None
) -> PretrainedConfig:
    """The config object of the model's text part.

    Raises:
        ModelError: the type is unknown, is not a causal language model, or needs foreign code.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("The model's config.json does not say its 'model_type'.")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config and trust_remote_code and code is not None:
            foreign: PretrainedConfig = AutoConfig.from_pretrained(str(code), trust_remote_code=True)
            return foreign
        raise _unknown(config, model_type, list(CONFIG_MAPPING.keys()))
    try:
        parsed: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(_special_floats(config))
    except Exception as error:  # strict configs raise many kinds
        raise ModelError(
            f"The config.json of this '{model_type}' model is not valid: {first_line(error)}"
        ) from error
    text = parsed.get_text_config(decoder=True)
    if type(text) is not type(parsed) and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        text.tie_word_embeddings = parsed.tie_word_embeddings  # the whole model's word counts, not its part's
        return text
    if type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"A '{model_type}' model is not a causal language model.",
            hint="optpipe takes text generation models",
        )
    return parsed


def _special_floats(config: dict[str, Any]) -> dict[str, Any]:
    """A config with ``{"__float__": "Infinity"}``, transformers' form of what JSON lacks, as floats again."""

    def decoded(value: Any) -> Any:
        if isinstance(value, dict):
            special = value.get("__float__")
            if len(value) == 1 and special in ("Infinity", "-Infinity", "NaN"):
                return float(special)
            return {key: decoded(one) for key, one in value.items()}
        return [decoded(one) for one in value] if isinstance(value, list) else value

    return {key: decoded(value) for key, value in config.items()}


def config_content(model: PreTrainedModel, config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the model itself: the one it came with, or its text part's when that has several."""
    if config.get("model_type") == model.config.model_type:
        return config
    content: dict[str, Any] = model.config.to_dict()
    return content | {"architectures": [type(model).__name__]}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, and the next when that ends in a colon, for use in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:300]


def _unknown(config: dict[str, Any], model_type: str, known: list[str]) -> ModelError:
    if "auto_map" in config:
        return ModelError(
            f"The model type '{model_type}' is not part of transformers, and comes with its own Python code.",
            hint="--trust-remote-code runs that code; give it only if you trust its author",
        )
    return ModelError(
        f"The installed transformers does not know the model type '{model_type}'.",
        hint=nearest(model_type, known) or "a newer transformers may know it",
    )


@contextlib.contextmanager
def _uninitialized() -> Iterator[None]:
    """No parameter is written while a model is built."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def _fill_buffers(model: PreTrainedModel) -> None:
    """Run the model's own initialization for modules that have buffers and no parameters.

    Building without initialization leaves out what some rotary and position modules compute there.
    """
    from transformers import PreTrainedModel

    with torch.no_grad():
        owners: dict[str, PreTrainedModel] = {"": model}  # a part initializes its own modules
        for name, module in model.named_modules():
            owner = owners[name.rpartition(".")[0]]
            owners[name] = owner = module if isinstance(module, PreTrainedModel) else owner
            if module._non_persistent_buffers_set and not any(True for _ in module.parameters(recurse=False)):
                owner._init_weights(module)
