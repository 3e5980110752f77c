"""Is this machine free to measure on? Beside busy programs, threads that wait for each other wait for those too."""

import time
from statistics import mean

import torch

from ..model.products import processor

TURNS, SECONDS = 3, 0.05  # one thread and all threads take turns, each so long
SLOWER, SHARE = 1.3, 0.8  # threads together may be so many times slower than one; one should have so much of a core


def trial(threads: int, seconds: float = SECONDS) -> tuple[float, float]:
    """(products of two matrices a second on so many threads, the share of the time that this one had a processor)."""
    kept, matrix, products = torch.get_num_threads(), torch.ones(256, 256), 0
    torch.set_num_threads(threads)
    try:
        matrix @ matrix  # the threads are started
        began, used = time.perf_counter(), time.thread_time()
        while (passed := time.perf_counter() - began) < seconds:
            matrix @ matrix
            products += 1
        return products / passed, (time.thread_time() - used) / passed
    finally:
        torch.set_num_threads(kept)


def busy() -> str | None:
    """One line if other work slows down what is measured on the processor, with what helps; else None. Takes 0.3 s.

    A timed trial and no load average, which remembers what this program did a minute ago and knows nothing of a
    container's limits. On a GPU the processor matters little, and nothing is tried.
    """
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return None
    turns = [(trial(1), trial(threads)) for _ in range(TURNS)]
    share = mean(one[1] for one, _ in turns)
    slower = mean(one[0] for one, _ in turns) / mean(many[0] for _, many in turns) if threads > 1 else 0.0
    if slower <= SLOWER and share >= SHARE:
        return None
    seen = f"a thread gets {share:.0%} of a core"
    if slower > SLOWER:
        seen = f"{threads} threads are {slower:.1f} times slower than one"
    helps = "or set OMP_NUM_THREADS=1" if threads > 1 else "or wait"
    return f"busy machine: {seen}, so other programs are running; speeds will be low and scattered. Close them, {helps}"


def usual_dtype() -> str | None:
    """What is usually fastest here: bfloat16 where the processor has instructions for it. None: the device's own."""
    return "bfloat16" if "bfloat16" in processor()[1] and not torch.cuda.is_available() else None
