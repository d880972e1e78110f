"""Why a model cannot be traced, in one line that a person can use.

``torch.export`` speaks of guards and symbols. What is true of the model stands in its modules, or, for the
few whose way of reading is their own, in a table. It is looked up after a trace has failed and never
refuses a model by itself.
"""

from __future__ import annotations

from torch import nn

STATE = "it keeps a recurrent or convolutional state that mixes tokens outside attention"
LISTS = "its experts run over lists of tokens whose lengths depend on the data"

# parameters of recurrences: Mamba's and its kin's decay, RWKV's
_STATE_PARAMETERS = ("A_log", "dt_bias", "time_decay")

# model type → what it does that is no causal decoder over one sequence of tokens
_OWN_WAYS: dict[str, str] = {
    "blt": "it cuts the text into patches where its own entropy model says so",
    "cpmant": "it reads a prompt of its own before the text, in both directions",
    "deepseek_v4": "it attends to compressed groups of earlier tokens beside the tokens themselves",
    "doge": "it hides keys by what they hold, not by where they are",
    "prophetnet": "it predicts several tokens at once, each with a stream of its own beside the text",
    "reformer": "its attention sorts tokens into buckets by their hashes",
    "transfo-xl": "it carries a memory of earlier segments",
    "xlstm": STATE,
    "xlm": "it counts the tokens that are not padding, and blanks the positions past that count",
    "xlnet": "it attends to permuted positions with two streams",
}


def explain(model: nn.Module, error: BaseException) -> str:
    """The reason that a model cannot be traced, to follow its name and a colon."""
    text = str(error)
    if has_state(model):
        return STATE
    own = own_way(model)
    if own is not None:
        return own
    if _is_data_dependent(text):
        return depends_on_data(model)
    if "Constraints violated" in text or "specialized" in text:
        return "its code only works for some numbers of tokens"
    return f"its code cannot be exported ({first_line(error)})"


def own_way(model: nn.Module) -> str | None:
    """What a model of a known type does that is no causal decoder over one sequence, or None."""
    return _OWN_WAYS.get(str(getattr(getattr(model, "config", None), "model_type", "")))


def depends_on_data(model: nn.Module) -> str:
    """The reason for sizes or branches that depend on values."""
    return LISTS if _has_experts(model) else "which operations it runs depends on the values of its tokens"


def has_state(model: nn.Module) -> bool:
    """Whether a model has parameters of a known recurrence, or convolutions along a sequence."""
    parameters = (name.rpartition(".")[2] for name, _ in model.named_parameters())
    return any(name in _STATE_PARAMETERS for name in parameters) or any(
        isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1 for module in model.modules()
    )


def _has_experts(model: nn.Module) -> bool:
    return any("expert" in type(module).__name__.lower() for module in model.modules())


def _is_data_dependent(text: str) -> bool:
    return "data-dependent" in text or "unbacked" in text


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, cut to fit a sentence."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]
