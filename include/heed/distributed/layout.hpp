// How the tokens of a sequence are dealt to the processes of a communicator, and which positions a
// process's tokens have:
//
//   blocks    process r holds one block of ⌈L/N⌉ consecutive tokens (the last ones fewer)
//   striped   process r holds tokens r, r + N, r + 2N, …
//   zigzag    of 2N blocks of ⌈L/2N⌉ tokens, process r holds blocks r and 2N − 1 − r
//
// Under a causal mask the last block attends to all keys and the first one to a 1/N of them, so
// that with blocks most processes wait; the other two give every process nearly equal work.
//
// Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023; Brandon
// et al., "Striped Attention: Faster Ring Attention for Causal Transformers", 2023; zigzag:
// Context parallelism of Llama 3 (Dubey et al., 2024).
#pragma once

#include "../config.hpp"
#include "../core/error.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed {

// Positions of the tokens of one process, ascending: two runs of the same stride.
struct token_places {
  index_t count = 0;   // of tokens
  index_t split = 0;   // of tokens in the first run
  index_t first = 0;   // position of token 0
  index_t second = 0;  // position of token `split`
  index_t stride = 1;

  index_t operator[](index_t token) const {
    return token < split ? first + token * stride : second + (token - split) * stride;
  }
  // Tokens at positions below `position`.
  index_t count_below(index_t position) const {
    const index_t low = below(position - first, split);
    return low + below(position - second, count - split);
  }

 private:
  index_t below(index_t distance, index_t tokens) const {
    if (distance <= 0) return 0;
    const index_t reached = (distance + stride - 1) / stride;
    return reached < tokens ? reached : tokens;
  }
};

namespace detail {

// What the layouts have in common: L tokens for N processes.
struct dealt {
  index_t length;
  int processes;

  dealt(index_t tokens, int process_count) : length(tokens), processes(process_count) {
    if (tokens < 0) raise(message("layout: length ") << tokens << " is negative");
    if (process_count < 1) {
      raise(message("layout: process count ") << process_count << " is not positive");
    }
  }

 protected:
  // Position where block `at` of blocks of equal size begins.
  index_t begin_of(index_t at, index_t blocks) const {
    const index_t begin = at * ((length + blocks - 1) / blocks);
    return begin < length ? begin : length;
  }
};

}  // namespace detail

struct blocks : detail::dealt {
  using dealt::dealt;
  // Neighbours in memory are neighbours in the sequence.
  static constexpr bool consecutive = true;
  token_places of(int process) const {
    const index_t begin = begin_of(process, processes), end = begin_of(process + 1, processes);
    return {end - begin, end - begin, begin, end, 1};
  }
};

struct striped : detail::dealt {
  using dealt::dealt;
  static constexpr bool consecutive = false;
  token_places of(int process) const {
    const index_t count = (length - process + processes - 1) / processes;
    return {count, count, process, process + count * processes, processes};
  }
};

struct zigzag : detail::dealt {
  using dealt::dealt;
  static constexpr bool consecutive = false;
  token_places of(int process) const {
    const index_t all = index_t{2} * processes, mirror = all - 1 - process;
    const index_t first = begin_of(process, all), first_end = begin_of(process + 1, all);
    const index_t second = begin_of(mirror, all), second_end = begin_of(mirror + 1, all);
    const index_t split = first_end - first;
    return {split + second_end - second, split, first, second, 1};
  }
};

}  // namespace distributed
HEED_NAMESPACE_END
