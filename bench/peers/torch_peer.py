"""PyTorch, in the protocol of peer.hpp: scaled_dot_product_attention.

Decoding has two ways, the fastest counts: grouped heads as they are, and the query heads of a KV
head as the rows of one head.
"""

import argparse
import sys
import time

try:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
except ImportError as error:
    print(f"torch_peer: {error}", file=sys.stderr)
    sys.exit(3)


def number(tensor, count):
    """What the programs agree on, for elements 0 to count - 1. Products wrap around at 64 bits, which
    leaves their lower 32 as they should be."""
    low = 0xFFFFFFFF
    x = (torch.arange(count, dtype=torch.int64) + (tensor << 24)) & low
    x = ((x ^ x >> 16) * 0x7FEB352D) & low
    x = ((x ^ x >> 15) * 0x846CA68B) & low
    x ^= x >> 16
    return (x >> 8).to(torch.float32) / 2**23 - 1


def best_seconds(call):
    call()
    best, elapsed, calls = float("inf"), 0.0, 0
    while calls < 3 or elapsed < 0.15:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, elapsed, calls = min(best, seconds), elapsed + seconds, calls + 1
    return best


def ways(q, k, v, causal):
    """Names and functions; all of them compute the same."""
    group = q.shape[1] // k.shape[1]
    if group == 1:
        yield "", lambda: scaled_dot_product_attention(q, k, v, is_causal=causal)
        return
    yield "enable_gqa", lambda: scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=True
    )
    if q.shape[2] == 1 and not causal:
        rows = q.reshape(q.shape[0], k.shape[1], group, q.shape[3])
        yield "group as rows", lambda: scaled_dot_product_attention(rows, k, v)


def measure(case, dtype, query_extents, key_extents, causal, check):
    def tensor(identity, width, extents):
        values = width * number(identity, torch.Size(extents).numel())
        return values.to(dtype).reshape(extents)

    q = tensor(1, 4, query_extents)
    k, v = tensor(2, 1, key_extents), tensor(3, 1, key_extents)
    best = reason = None
    for name, attend in ways(q, k, v, causal):
        try:
            seconds = best_seconds(attend)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            continue
        if best is None or seconds < best[0]:
            best = seconds, name, attend
    if best is None:
        print(f"# missing {case} {reason}", flush=True)
        return
    seconds, name, attend = best
    if check:
        out = attend().reshape(-1).to(torch.float64)
        weights = 1 + number(4, out.numel()).to(torch.float64)
        print(f"# check {case} {(out.abs() * weights).sum().item():.9g}")
    if name:
        print(f"# note {case} {name}")
    print(f"{case} {seconds:.9g}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"# library PyTorch {torch.__version__}")
    types = {"float": torch.float32, "bf16": torch.bfloat16}
    with open(options.shapes, encoding="utf-8") as file, torch.inference_mode():
        for line in file:
            if not line.strip() or line.startswith("#"):
                continue
            case, dtype, *numbers, mask = line.split()
            batch, query_heads, kv_heads, queries, keys, depth = map(int, numbers)
            measure(
                case,
                types[dtype],
                (batch, query_heads, queries, depth),
                (batch, kv_heads, keys, depth),
                mask == "causal",
                options.round == 1,
            )


main()
