"""schemathesis sends what the server's own OpenAPI page allows, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from .kit import LetterExecutor, serve

EXAMPLES = 12
OPERATIONS = (
    ("/v1/completions", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
    ("/", "GET"),
)


@pytest.fixture(scope="module")
def schema() -> Any:
    with serve(LetterExecutor(), context=128) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_tried(schema: Any) -> None:
    found = {(it.ok().path, it.ok().method.upper()) for it in schema.get_all_operations()}
    assert found == set(OPERATIONS)


TRIES = [(*it, GenerationMode.POSITIVE) for it in OPERATIONS] + [
    (path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if method == "POST"
]


@pytest.mark.parametrize(("path", "method", "mode"), TRIES, ids=lambda it: getattr(it, "value", it))
def test_finds_nothing(schema: Any, path: str, method: str, mode: GenerationMode) -> None:
    cases = schema[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        # A schema cannot say which token ids there are, nor how long a prompt may be.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
