// Factorised patterns of Child et al., "Generating Long Sequences with Sparse Transformers" (2019),
// all causal (j ≤ i), with stride l:
//
//   strided   i − j < l, or (i − j) mod l = 0
//   fixed     ⌊j / l⌋ = ⌊i / l⌋, or j mod l ≥ l − c          the last c of every l are summaries
//
// as masks of tokens (strided_pattern, fixed_pattern), and the layouts of the two well-known
// implementations, which work on blocks:
//
//   openai_local, openai_fixed, openai_strided       openai/sparse_attention; to be & causal{}
//   deepspeed_fixed                                   DeepSpeed's sparse attention; & causal{}
//   where
//                                                     unidirectional
//
// Masks are turned into lists by list_of(mask, call, block_q, block_k); heads of the two parts may
// also be mixed by different lists per head.
#pragma once

#include "block_list.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

// The last l keys, and every l-th before.
struct strided_pattern {
  index_t stride;
  explicit strided_pattern(index_t keys) : stride(keys) {
    if (keys < 1) raise(message("strided_pattern: stride ") << keys << " is not positive");
  }
  bool operator()(const position& p) const {
    const index_t back = p.aligned_q() - p.k;
    return back >= 0 && (back < stride || back % stride == 0);
  }
};

// The keys of the query's own group of l, and the last c of every group before.
struct fixed_pattern {
  index_t stride, summaries;
  fixed_pattern(index_t keys, index_t last) : stride(keys), summaries(last) {
    if (keys < 1) raise(message("fixed_pattern: stride ") << keys << " is not positive");
    if (last < 0 || last > keys) {
      raise(message("fixed_pattern: ") << last << " summaries must lie in [0, " << keys << "]");
    }
  }
  bool operator()(const position& p) const {
    const index_t q = p.aligned_q();
    return p.k <= q && (p.k / stride == q / stride || p.k % stride >= stride - summaries);
  }
};

namespace layouts {
inline block_shape square(index_t heads, index_t blocks, index_t block) {
  if (heads < 1) raise(message("layout: ") << heads << " heads, must be positive");
  if (blocks < 0) raise(message("layout: ") << blocks << " blocks, must not be negative");
  if (block < 1) raise(message("layout: block size ") << block << " is not positive");
  return {1, heads, blocks, blocks, block, block};
}
inline void positive(const char* name, index_t value) {
  if (value < 1) raise(message("layout: ") << name << " " << value << " is not positive");
}
}  // namespace layouts

// Blocks up to `back` before the own one: a band of back·block + 1 to (back + 1)·block keys; exact
// bands of w = back·block keys are this & window{w − 1, 0}.
inline block_list openai_local(index_t blocks, index_t block, index_t back) {
  return list_where(layouts::square(1, blocks, block), [&](index_t, index_t, index_t i, index_t j) {
    return j <= i && i - j <= back;
  });
}

// Groups of `stride` blocks; a query sees its own group and, of every group, `width` blocks counted
// from the group's end. With more than one version (verts), head h counts from version h mod verts:
// the heads see different summaries.
inline block_list openai_fixed(index_t heads, index_t blocks, index_t block, index_t stride,
                               index_t verts = 1, index_t width = 1) {
  layouts::positive("stride", stride);
  layouts::positive("verts", verts);
  if (width < 1 || stride % width != 0) {
    raise(message("layout: width ") << width << " does not divide stride " << stride);
  }
  const index_t versions = stride / width;
  if (verts > versions) {
    raise(message("layout: verts ")
          << verts << " is more than the " << versions << " versions of stride " << stride);
  }
  return list_where(layouts::square(verts == 1 ? 1 : heads, blocks, block),
                    [&](index_t, index_t h, index_t i, index_t j) {
                      const bool own = j / stride == i / stride;
                      return j <= i && (own || (stride - 1 - j % stride) / width == h % verts);
                    });
}

// The strided part over a sequence that was sorted by its position mod the stride (then by
// position): `chunk` blocks of every residue, each sees the blocks of its own up to itself.
inline block_list openai_strided(index_t blocks, index_t block, index_t chunk) {
  layouts::positive("chunk", chunk);
  return list_where(layouts::square(1, blocks, block), [&](index_t, index_t, index_t i, index_t j) {
    return j <= i && j / chunk == i / chunk;
  });
}

// DeepSpeed's FixedSparsityConfig: local groups of `local` blocks, of each of which `global` blocks
// are seen by all rows (rows from their own on where unidirectional); `horizontal` lets their own
// rows see everything too. Head h takes the blocks of pattern h mod patterns, counted from the
// group's end.
struct deepspeed_fixed {
  index_t heads = 1;
  index_t local = 4, global = 1;
  bool unidirectional = false, horizontal = false;
  index_t patterns = 1;
  bool same_for_all_heads = true;

  block_list list(index_t blocks, index_t block) const {
    layouts::positive("local", local);
    layouts::positive("global", global);
    layouts::positive("patterns", patterns);
    if (local % global != 0 || patterns > local / global) {
      raise(message("layout: ") << patterns << " patterns of " << global
                                << " global blocks do not fit a local group of " << local);
    }
    if (horizontal && unidirectional) {
      raise("layout: horizontal global attention looks ahead, unidirectional attention does not");
    }
    const index_t whole = blocks - blocks % local;
    return list_where(
        layouts::square(same_for_all_heads ? 1 : heads, blocks, block),
        [&](index_t, index_t h, index_t i, index_t j) {
          if (i / local == j / local && (!unidirectional || j <= i)) return true;
          bool seen = false;
          const auto look = [&](index_t from) {
            seen = seen || (j >= from && j < from + global && (!unidirectional || i >= from)) ||
                   (horizontal && i >= from && i < from + global);
          };
          const index_t first = local - (1 + h % patterns) * global;
          for (index_t from = first; from < whole; from += local) look(from);
          // A short group at the end has its global blocks where they still fit.
          if (whole < blocks) look(min(whole + first, blocks - global));
          return seen;
        });
  }
};

}  // namespace sparse
HEED_NAMESPACE_END
