"""nanoGPT's training step, on nanoGPT's own model read from a checkout of it.

The step does what one iteration of nanoGPT's `train.py` does (commit 3adf61e of
https://github.com/karpathy/nanoGPT): forward, the next batch from a memory map, backward, clip to
1.0, the AdamW that its `configure_optimizers` builds, gradients set to None.
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

_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.95), 0.1, 1.0
_SEED = 1337  # of nanoGPT's train.py


def read_model_file(checkout: Path) -> ModuleType:
    """nanoGPT's `model.py` as a module. Raises: ValueError if the folder has none."""
    file = checkout / "model.py"
    if not file.exists():
        raise ValueError(
            f"--nanogpt {checkout} has no model.py; give a checkout of github.com/karpathy/nanoGPT"
        )
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the dataclass decorator looks its module up here
    spec.loader.exec_module(module)
    return module


def write_tokens(data: DataSet, file: Path) -> None:
    """Write the training tokens as the flat uint16 file that nanoGPT reads.

    Raises: ValueError if the vocabulary is too large for that.
    """
    if data.manifest.token_bytes > 2:
        raise ValueError(
            f"{data.folder} has {data.manifest.tokenizer.n_vocab} ids, but nanoGPT reads uint16; "
            "give a data set of at most 65536 ids"
        )
    with file.open("wb") as out:
        for shard in data.manifest.train.shards:
            out.write(np.load(data.folder / f"{shard.name}.npy").tobytes())


class NanoStep:
    """nanoGPT's model and optimizer with the next batch."""

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
        torch.manual_seed(_SEED)
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
            self.optimizer = self.model.configure_optimizers(
                _WEIGHT_DECAY, 6e-4, _BETAS, device.type
            )
        self.forward = torch.compile(self.model) if compiled else self.model
        self.tokens, self.shape, self.batch = tokens, shape, batch
        self.accumulate, self.dtype, self.device = accumulate, dtype, device
        self.ready = self.next_batch()

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows, converted to int64 on the host. Shapes: twice (B, T)."""
        T = self.shape.context_length
        # nanoGPT opens a new memory map for each batch, against a memory leak:
        # https://stackoverflow.com/questions/45132940/numpy-memmap-memory-usage-want-to-iterate-once
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
        """One optimizer step; returns the loss of the last micro-step."""
        loss = torch.zeros(())
        for _ in range(self.accumulate):
            with autocast(self.dtype, self.device):
                _, loss = self.forward(*self.ready)
                loss = loss / self.accumulate
            self.ready = self.next_batch()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach() * self.accumulate
