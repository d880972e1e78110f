"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from optpipe.pipeline import memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_pieces_that_were_freed_are_given_back():
    assert memory._malloc_trim() is not None, "glibc"
    keep, drop = [], []
    for _ in range(2000):  # under the size that is mapped on its own
        drop.append(torch.ones(16_000))
        keep.append(torch.ones(4))
    held = resident()
    drop.clear()
    memory.give_back()
    assert held - resident() > 64e6


def test_another_c_library_is_left_alone(monkeypatch):
    memory._malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()
    memory._malloc_trim.cache_clear()
