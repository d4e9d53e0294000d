"""How batches reach the device."""

import numpy as np
import torch

from eval.scoring.batches import on_device


def test_a_gpu_gets_pinned_memory_without_waiting(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda host: calls.append("pinned") or host)

    def to(host, device, non_blocking=False):
        calls.append((device, non_blocking))
        return host

    monkeypatch.setattr(torch.Tensor, "to", to)
    cuda, ids = torch.device("cuda", 0), np.arange(3)
    assert on_device(ids, cuda).tolist() == [0, 1, 2]
    assert calls == ["pinned", (cuda, True)]
    on_device(ids, torch.device("cpu"))
    assert calls[2:] == [(torch.device("cpu"), False)]
