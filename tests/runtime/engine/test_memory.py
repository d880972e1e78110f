"""What fits: the division of what is free."""

import pytest

from optpipe.errors import CapacityError, RequestError
from optpipe.targets.protocol import MemoryNeeds
from optpipe_runtime.engine.config import EngineConfig, parse_memory
from optpipe_runtime.engine.memory import plan_memory

from ..tape import TapeExecutor


class Sized(TapeExecutor):
    """Takes a thousand bytes a block, and some for weights and workspace."""

    def __init__(self, weights=0, workspace=0, free=None, loaded=0):
        super().__init__(block_size=16)
        self.needs = MemoryNeeds(weights, workspace, free, loaded)

    def block_bytes(self, kv_dtype=None):
        return 1000

    def memory(self, *, tokens, rows):
        return self.needs


def plan(executor, free=None, context=None, draft=None, **config):
    return plan_memory(executor, EngineConfig(**config), rows=8, context=context, free=free, draft=draft)


def test_a_share_is_of_what_weights_and_workspace_leave():
    found = plan(Sized(400_000, 100_000), free=1_000_000, kv_memory=0.4)
    assert (found.num_blocks, found.cache) == (200, 200_000)
    assert str(found) == (
        "memory: weights 400.0 kB, workspace 100.0 kB, KV cache 200.0 kB (200 blocks of 16 tokens in i64, "
        "3200 tokens), of 1.0 MB free"
    )


def test_a_draft_model_takes_its_part():
    """100 kB stay for both caches of the 500 kB that are left; the draft's is a quarter of the model's."""
    draft = Sized(200_000, 50_000, loaded=100_000)
    found = plan(Sized(300_000, 50_000), free=1_000_000, kv_memory=0.2, draft=draft)
    assert (found.num_blocks, found.draft.num_blocks) == (80, 20)
    assert str(found) == (
        "memory: weights 300.0 kB, workspace 50.0 kB, KV cache 80.0 kB (80 blocks of 16 tokens in i64, 1280 "
        "tokens), draft model: weights 200.0 kB, workspace 50.0 kB, KV cache 20.0 kB, of 1.0 MB free"
    )
    assert plan(Sized(), free=1_000_000, kv_memory=500_000, draft=Sized()).cache == 400_000
    assert plan(Sized(), free=1_000_000, num_blocks=800, draft=Sized()).draft.cache == 200_000


@pytest.mark.parametrize(
    ("draft", "config"),
    [(Sized(1_000_000), {}), (Sized(), {"num_blocks": 801}), (Sized(200_000), {"num_blocks": 700})],
    ids=["weights", "cache", "together"],
)
def test_a_draft_model_that_does_not_fit_beside_the_model_is_refused(draft, config):
    with pytest.raises(CapacityError, match=r"draft model: weights"):
        plan(Sized(), free=1_000_000, draft=draft, **config)


def test_weights_that_are_in_memory_take_no_more():
    assert plan(Sized(400_000, loaded=400_000), free=1_000_000, kv_memory=0.5).num_blocks == 500
    assert plan(Sized(400_000, loaded=100_000), free=1_000_000, kv_memory=0.5).num_blocks == 350


def test_bytes_and_blocks():
    assert plan(Sized(), free=1_000_000, kv_memory=123_456).num_blocks == 123
    assert plan(Sized(), free=1_000_000, num_blocks=7).num_blocks == 7


def test_no_more_than_can_be_used():
    assert plan(Sized(), free=10**9, context=64, max_num_seqs=3).num_blocks == 15
    assert plan(Sized(), free=10**9, context=64, max_context=32, max_num_seqs=3).num_blocks == 9


def test_the_executor_s_device_counts_where_it_says_so():
    assert plan(Sized(free=500_000), kv_memory=0.5).num_blocks == 250


@pytest.mark.parametrize(
    ("executor", "config"),
    [
        (Sized(2_000_000), {}),
        (Sized(), {"kv_memory": 2_000_000}),
        (Sized(), {"num_blocks": 2000}),
        (Sized(), {"kv_memory": 999}),
        (Sized(600_000), {"kv_memory": 500_000}),
    ],
    ids=["weights", "bytes", "blocks", "less than a block", "together"],
)
def test_what_does_not_fit_is_refused_with_the_figures(executor, config):
    with pytest.raises(
        CapacityError, match=r"does not fit this machine: memory: weights .* KV cache"
    ) as caught:
        plan(executor, free=1_000_000, **config)
    assert "--kv-memory" in caught.value.hint


def test_a_kv_dtype_that_the_target_lacks():
    with pytest.raises(CapacityError) as caught:
        plan(Sized(), free=10**6, kv_dtype="bf16")
    assert caught.value.hint == "it has i64"
    assert plan(Sized(), free=10**6, kv_dtype="i64").kv_dtype == "i64"


@pytest.mark.parametrize(("asked", "given"), [("fp8", "f8"), ("int8", "i8"), ("i8", "i8")])
def test_a_kv_dtype_by_the_name_that_others_have_for_it(asked, given):
    class Eight(Sized):
        kv_dtypes = ("bf16", "f8", "i8")

    assert plan(Eight(), free=10**6, kv_dtype=asked).kv_dtype == given


@pytest.mark.parametrize("text", ["", "x", "1Z", "-", "12 parsecs", "1e999", "nan"])
def test_amounts_that_are_none(text):
    with pytest.raises(RequestError):
        EngineConfig(kv_memory=parse_memory(text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
        ("max_waiting", -1),
        ("policy", "lifo"),
        ("kv_memory", 1.5),
        ("kv_memory", 0),
        ("kv_memory", -5),
        ("watermark", 1.0),
        ("request_timeout", 0.0),
        ("request_timeout", float("nan")),
        ("num_blocks", 0),
        ("sampler_threads", 0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(name, value):
    with pytest.raises(RequestError, match=name):
        EngineConfig(**{name: value})
