// Layouts against those of OpenAI's and DeepSpeed's own code, bit by bit; the paper's patterns
// against their definitions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "heed/mask/causal.hpp"
#include "heed/mask/window.hpp"
#include "heed/sparse/bigbird.hpp"
#include "heed/sparse/local.hpp"
#include "heed/sparse/longformer.hpp"
#include "heed/sparse/sparse_transformer.hpp"
#include "support/vector_case.hpp"

namespace {

using heed::index_t;
using heed_test::vector_case;
namespace sparse = heed::sparse;

// Python's random.Random(0).sample(range(n), k): its generator is seeded by an array of one 0.
class python_random {
 public:
  python_random() {
    std::vector<std::uint32_t> state(624);
    state[0] = 19650218u;
    for (std::uint32_t i = 1; i < 624; ++i) {
      state[i] = 1812433253u * (state[i - 1] ^ state[i - 1] >> 30) + i;
    }
    std::size_t i = 1;
    for (int k = 0; k < 624; ++k) {
      state[i] = (state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) * 1664525u);  // + key 0 + index 0
      if (++i == 624) state[0] = state[623], i = 1;
    }
    for (int k = 0; k < 623; ++k) {
      state[i] = (state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) * 1566083941u) -
                 static_cast<std::uint32_t>(i);
      if (++i == 624) state[0] = state[623], i = 1;
    }
    state[0] = 0x80000000u;
    // The library's generator reads its state from a stream.
    std::stringstream words;
    for (std::uint32_t word : state) words << word << ' ';
    words << 624;
    words >> generator_;
  }
  std::vector<index_t> sample(index_t n, index_t k) {
    std::vector<index_t> pool(static_cast<std::size_t>(n)), result;
    std::iota(pool.begin(), pool.end(), index_t{0});
    for (index_t i = 0; i < k; ++i) {
      const auto at = static_cast<std::size_t>(below(n - i));
      result.push_back(pool[at]);
      pool[at] = pool[static_cast<std::size_t>(n - i - 1)];
    }
    return result;
  }

 private:
  index_t below(index_t n) {
    int bits = 0;
    while (index_t{1} << bits <= n) ++bits;
    index_t value = n;
    while (value >= n) value = static_cast<index_t>(generator_() >> (32 - bits));
    return value;
  }
  std::mt19937 generator_;
};

// Layout of a list, its head axis repeated to `heads`.
std::vector<std::uint8_t> layout_of(const sparse::block_list& list, index_t heads) {
  std::vector<std::uint8_t> bits;
  const auto view = list.view();
  for (index_t h = 0; h < heads; ++h) {
    for (index_t i = 0; i < list.shape.query_blocks; ++i) {
      const auto row = view.row(0, list.shape.heads == 1 ? 0 : h, i);
      for (index_t j = 0; j < list.shape.key_blocks; ++j) {
        bits.push_back(std::find(row.begin(), row.end(), j) != row.end());
      }
    }
  }
  return bits;
}

TEST(layouts, deepspeed) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("sparse")) {
    const vector_case c(folder);
    if (c.name.rfind("deepspeed", 0) != 0) continue;
    SCOPED_TRACE(c.name);
    const auto& a = c.meta.at("attrs");
    const auto wanted = c.output("layout");
    const index_t heads = wanted.shape[0], blocks = wanted.shape[1];
    const auto number = [&](const char* name) { return a.at(name).get<index_t>(); };
    const index_t block = number("block");
    const bool one_way = a.at("attention").get<std::string>() == "unidirectional";
    sparse::block_list list;
    if (c.name == "deepspeed_layout_fixed_uni") {
      sparse::deepspeed_fixed how;
      how.heads = heads;
      how.local = number("num_local_blocks");
      how.global = number("num_global_blocks");
      how.unidirectional = one_way;
      how.horizontal = a.at("horizontal_global_attention").get<bool>();
      how.patterns = number("num_different_global_patterns");
      list = how.list(blocks, block);
    } else if (c.name == "deepspeed_layout_local_uni") {
      list = sparse::sliding_blocks(blocks, block, number("num_sliding_window_blocks"), one_way);
    } else if (c.name == "deepspeed_layout_longformer") {
      const auto global = a.at("global_block_indices").get<std::vector<index_t>>();
      list =
          sparse::bslongformer(blocks, block, number("num_sliding_window_blocks"), global, one_way);
    } else {
      ASSERT_EQ(c.name, "deepspeed_layout_bigbird");
      python_random draw;
      const index_t per_row = number("num_random_blocks");
      std::vector<index_t> random;
      for (index_t row = 0; row < heads * blocks; ++row) {
        const auto drawn = draw.sample(blocks, per_row);
        random.insert(random.end(), drawn.begin(), drawn.end());
      }
      list = sparse::bigbird_layout(
          blocks, block, number("num_sliding_window_blocks"), number("num_global_blocks"),
          heed::tensor_view<const index_t, 3>(random.data(), {heads, blocks, per_row}), one_way);
    }
    EXPECT_EQ(layout_of(list, heads), wanted.as<std::uint8_t>());
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 4u);
}

TEST(layouts, openai) {
  std::set<std::string> done;
  for (const auto& folder : heed_test::list_cases("sparse")) {
    const vector_case c(folder);
    if (c.name.rfind("openai", 0) != 0) continue;
    SCOPED_TRACE(c.name);
    const auto& a = c.meta.at("attrs");
    const auto wanted = c.output("layout");
    const index_t length = a.at("n_ctx").get<index_t>(), block = a.at("blocksize").get<index_t>();
    const index_t blocks = length / block, heads = wanted.shape[0];
    const auto local = [&] { return a.at("local_attn_ctx").get<index_t>(); };
    const std::string mode = a.at("mode").get<std::string>();
    sparse::block_list list;
    index_t window = length;
    if (mode == "all") {
      list = sparse::list_of(heed::causal{}, {1, 1, length, length}, block, block);
    } else if (mode == "local") {
      list = sparse::openai_local(blocks, block, local() / block);
      window = local();
    } else if (mode == "fixed") {
      list =
          sparse::openai_fixed(a.at("heads").get<index_t>(), blocks, block, local() / block,
                               a.at("num_verts").get<index_t>(), a.at("vertsize").get<index_t>());
    } else {
      ASSERT_EQ(mode, "strided");
      list = sparse::openai_strided(blocks, block, length / local() / block);
    }
    EXPECT_EQ(layout_of(list, heads), wanted.as<std::uint8_t>());
    const auto mask = list.view() & heed::causal{} & heed::window{window - 1, 0};
    const std::vector<std::uint8_t> bits = c.output("mask").as<std::uint8_t>();
    for (index_t q = 0; q < length; ++q) {
      for (index_t k = 0; k < length; ++k) {
        const auto at = static_cast<std::size_t>(q * length + k);
        ASSERT_EQ(mask(heed::position{0, 0, q, k, length, length}),
                  (bits[at / 8] >> (7 - at % 8) & 1) != 0)
            << q << " " << k;
      }
    }
    done.insert(c.name);
  }
  EXPECT_EQ(done.size(), 4u);
}

// The strided pattern is the band and, in the order of openai_strided, its blocks.
TEST(layouts, strided_pattern_is_the_union_of_its_two_parts) {
  const index_t stride = 16, length = 512, block = 32;
  const sparse::strided_pattern pattern(stride);
  const auto column = sparse::openai_strided(length / block, block, length / stride / block);
  const auto view = column.view();
  const auto sorted = [&](index_t i) { return i % stride * (length / stride) + i / stride; };
  for (index_t q = 0; q < length; ++q) {
    for (index_t k = 0; k < length; ++k) {
      const bool band = k <= q && q - k < stride;
      const bool in_column =
          k <= q && view(heed::position{0, 0, sorted(q), sorted(k), length, length});
      ASSERT_EQ(pattern(heed::position{0, 0, q, k, length, length}), band || in_column)
          << q << " " << k;
    }
  }
}

// With summaries that fill whole blocks the fixed pattern is OpenAI's layout & causal.
TEST(layouts, fixed_pattern_is_the_layout) {
  const index_t length = 256, block = 16, stride = 64;
  const sparse::fixed_pattern pattern(stride, 32);
  const auto list = sparse::openai_fixed(1, length / block, block, stride / block, 1, 2);
  const auto mask = list.view() & heed::causal{};
  for (index_t q = 0; q < length; ++q) {
    for (index_t k = 0; k < length; ++k) {
      const heed::position p{0, 0, q, k, length, length};
      ASSERT_EQ(pattern(p), mask(p)) << q << " " << k;
    }
  }
}

// Versions of the fixed layout differ by head; the last, short group of DeepSpeed's too.
TEST(layouts, heads_see_different_summaries) {
  const auto list = sparse::openai_fixed(4, 8, 16, 4, 4, 1);
  ASSERT_EQ(list.shape.heads, 4);
  for (index_t h = 0; h < 4; ++h) {
    const auto row = list.view().row(0, h, 7);
    EXPECT_TRUE(std::find(row.begin(), row.end(), 3 - h) != row.end()) << h;
    EXPECT_EQ(row.size(), 5u);
  }
  sparse::deepspeed_fixed how;
  how.heads = 2;
  how.patterns = 2;
  how.same_for_all_heads = false;
  how.horizontal = true;
  const auto fixed = how.list(6, 16);  // one whole group, and two blocks
  const std::vector<std::uint8_t> wanted = {
      1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1,  // head 0: global 3 and 5
      1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1,  //
      1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1,  // head 1: global 2 and 5
      1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(layout_of(fixed, 2), wanted);
}

// A reach beyond every position is no limit.
TEST(layouts, take_any_reach) {
  constexpr index_t most = std::numeric_limits<index_t>::max();
  const heed::call_shape call{1, 1, 40, 40};
  const index_t blocks = 10, pairs = blocks * (blocks + 1) / 2;
  const auto count = [](const sparse::block_list& list) {
    return static_cast<index_t>(list.blocks.size());
  };
  EXPECT_EQ(count(sparse::local(call, 4, most, 0)), pairs);
  EXPECT_EQ(count(sparse::local(call, 4, 0, most)), pairs);
  EXPECT_EQ(count(sparse::openai_local(blocks, 4, most)), pairs);
  const std::vector<index_t> state(40, 0);
  const sparse::longformer_mask mask(heed::tensor_view<const index_t, 2>(state.data(), {1, 40}),
                                     most);
  index_t seen = 0;
  mask.for_each_key_run({0, 0, 8, 16, 0, 40, 40, 40},
                        [&](index_t begin, index_t end) { seen += end - begin; });
  EXPECT_EQ(seen, 40);
  EXPECT_TRUE(mask({0, 0, 0, 39, 40, 40}));
}

}  // namespace
