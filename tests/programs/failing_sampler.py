"""train/main.py whose rank 1 cannot sample at its second time.

Under torchrun: tests/programs/failing_sampler.py, then the arguments of train/main.py
"""

from eval.sampling import decoding
from parallel.ranks import rank_from_environment
from train.main import main


def fail_once(at: int) -> None:
    """Have call number `at` of `sample_batches` fail in a way that is no user error."""
    plain, calls = decoding.sample_batches, []

    def sample_batches(*words) -> None:
        calls.append(words)
        if len(calls) == at:
            raise RuntimeError("no kernel image")
        plain(*words)

    decoding.sample_batches = sample_batches


if __name__ == "__main__":
    if rank_from_environment() == 1:
        fail_once(at=2)
    main()
