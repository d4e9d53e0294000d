"""nanoGPT's training step, on its own model read from its own checkout (none of it is kept here).

What its `train.py` does in one iteration (commit 3adf61e): forward, the next batch from a memory
map, backward, clip to 1.0, AdamW as its `configure_optimizers` builds it, gradients dropped.
"""

import importlib.util
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from data_prep.dataset.shards import DataSet
from model.config import GPTConfig
from model.precision import autocast

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
SEED = 1337  # as its train.py has it


def read_model_file(checkout: Path) -> ModuleType:
    """The peer's `model.py` as a module. Raises: ValueError if it is not there."""
    file = checkout / "model.py"
    if not file.exists():
        raise ValueError(
            f"--nanogpt {checkout} has no model.py; give a checkout of github.com/karpathy/nanoGPT"
        )
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def write_tokens(data: DataSet, file: Path) -> None:
    """The training tokens as the flat uint16 file that nanoGPT reads."""
    with file.open("wb") as out:
        for shard in data.manifest.train.shards:
            out.write(np.load(data.folder / f"{shard.name}.npy").tobytes())


class NanoStep:
    """The peer, ready for its next step."""

    def __init__(
        self,
        checkout: Path,
        shape: GPTConfig,
        tokens: Path,
        batch: int,
        accumulate: int,
        dtype: torch.dtype,
        compiled: bool,
        device: torch.device,
    ) -> None:
        torch.manual_seed(SEED)
        peer = read_model_file(checkout)
        config = peer.GPTConfig(
            block_size=shape.context_length,
            vocab_size=shape.padded_vocab_size,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            dropout=0.0,
            bias=shape.bias,
        )
        with redirect_stdout(sys.stderr):
            self.model = peer.GPT(config).to(device)
            self.optimizer = self.model.configure_optimizers(WEIGHT_DECAY, 6e-4, BETAS, device.type)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.tokens, self.shape, self.batch = tokens, shape, batch
        self.accumulate, self.dtype, self.device = accumulate, dtype, device
        self.ready = self.next_batch()

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows, copied out of a fresh memory map and widened on the host."""
        T = self.shape.context_length
        data = np.memmap(self.tokens, dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - T, (self.batch,)).tolist()
        pair = [
            torch.stack(
                [torch.from_numpy(data[i + k : i + k + T].astype(np.int64)) for i in starts]
            )
            for k in (0, 1)
        ]
        if self.device.type == "cuda":
            pair = [part.pin_memory().to(self.device, non_blocking=True) for part in pair]
        return pair[0], pair[1]

    def step(self) -> torch.Tensor:
        """One optimizer step; returns the loss of its last micro-step."""
        loss = torch.zeros(())
        for _ in range(self.accumulate):
            with autocast(self.dtype, self.device):
                _, loss = self.forward(*self.ready)
                loss = loss / self.accumulate
            self.ready = self.next_batch()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * self.accumulate
