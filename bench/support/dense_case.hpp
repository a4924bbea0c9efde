// Shapes, operands and masks of the dense benchmarks, and how much work a call on them is.
//
//   const dense_shape shape = prefill(8, 1024, 128);
//   const auto tensors = make_operands<float>(shape);
//   attend<heed::backend::native, mask_kind::causal>(tensors);
//   useful_flops(shape, mask_kind::causal)        // 2·H·(D + Dv) per score that is let through
#pragma once

#include <time.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <heed/backend/select.hpp>
#include <heed/core/element.hpp>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/documents.hpp>
#include <heed/mask/window.hpp>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "ceilings.hpp"
#include "plain_eigen.hpp"

namespace heed_bench {

using heed::index_t;

// One batch entry: more of them are to a kernel what more heads are.
struct dense_shape {
  index_t query_heads = 8, kv_heads = 8;
  index_t queries = 0, keys = 0;
  index_t depth = 0;  ///< of q and k, and of v unless it is latent
  /// Not 0: V is the first columns of K, that many, as in multi-head latent attention.
  index_t latent_depth = 0;

  index_t value_depth() const { return latent_depth != 0 ? latent_depth : depth; }
  bool operator==(const dense_shape&) const = default;
};

inline dense_shape prefill(index_t heads, index_t length, index_t depth) {
  return {heads, heads, length, length, depth};
}
/// The next token of a model with 32 query heads; `group` of them share a KV head.
inline dense_shape decode(index_t group, index_t keys, index_t depth) {
  return {32, 32 / group, 1, keys, depth};
}

/// Multi-head latent attention with its projections absorbed: 16 query heads read one KV head.
inline dense_shape latent(index_t queries, index_t keys) {
  return {16, 1, queries, keys, 576, 512};
}

enum class mask_kind {
  full,
  causal,
  window256,  ///< causal, the last 256 keys
  document,   ///< sequences of different lengths packed into one, each attending to itself
};

inline const char* name_of(mask_kind mask) {
  switch (mask) {
    case mask_kind::full:
      return "full";
    case mask_kind::causal:
      return "causal";
    case mask_kind::window256:
      return "window256";
    case mask_kind::document:
      break;
  }
  return "document";
}

template <heed::element T>
constexpr const char* type_name() {
  if constexpr (heed::is_bfloat16<T>) return "bf16";  // the name in benchmarks everywhere
  return heed::element_name<T>();
}

/// Lengths of the packed documents, one after the other and from the start again. None is a
/// multiple of a tile, and they add up to 1024.
inline constexpr std::array<index_t, 4> document_lengths = {301, 211, 413, 99};

/// The document that every token belongs to.
inline std::vector<std::int32_t> document_ids(index_t tokens) {
  std::vector<std::int32_t> ids;
  std::int32_t id = 0;
  index_t left = document_lengths[0];
  for (index_t token = 0; token < tokens; ++token, --left) {
    if (left == 0) left = document_lengths[static_cast<std::size_t>(++id) % 4];
    ids.push_back(id);
  }
  return ids;
}

/// The (query, key) pairs of one head that a mask lets through.
inline double visible_scores(mask_kind mask, index_t queries, index_t keys) {
  index_t count = 0;
  if (mask == mask_kind::document) {
    const auto ids = document_ids(keys);
    for (index_t first = 0, last = 0; first < keys; first = last) {
      while (last < keys &&
             ids[static_cast<std::size_t>(last)] == ids[static_cast<std::size_t>(first)]) {
        ++last;
      }
      count += (last - first) * (last - first);
    }
    return static_cast<double>(count);
  }
  for (index_t q = 0; q < queries; ++q) {
    const index_t up_to_own = std::clamp<index_t>(q + 1 + keys - queries, 0, keys);
    count += mask == mask_kind::full     ? keys
             : mask == mask_kind::causal ? up_to_own
                                         : std::min<index_t>(up_to_own, 256);
  }
  return static_cast<double>(count);
}

inline double useful_flops(const dense_shape& shape, mask_kind mask) {
  return 2.0 * static_cast<double>(shape.query_heads * (shape.depth + shape.value_depth())) *
         visible_scores(mask, shape.queries, shape.keys);
}

/// Bytes of K and V: what a decoding step must read at least.
template <class T>
double key_value_bytes(const dense_shape& shape) {
  const index_t columns = shape.latent_depth != 0 ? shape.depth : 2 * shape.depth;
  return static_cast<double>(shape.kv_heads * shape.keys * columns) * sizeof(T);
}

/// Numbers of mean 0 and variance 1, nearly normal: the sum of four uniform ones. Cheap, since the
/// keys of a long decode are tens of millions.
template <class T>
std::shared_ptr<T> random_tensor(index_t count, std::uint64_t seed) {
  const auto bytes = allocate(static_cast<std::size_t>(count) * sizeof(T));
  T* const values = reinterpret_cast<T*>(bytes.get());
  std::uint64_t state = seed;
  for (index_t i = 0; i < count; ++i) {
    state += 0x9e3779b97f4a7c15u;  // splitmix64
    std::uint64_t bits = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    double sum = 0;
    for (int part = 0; part < 4; ++part, bits >>= 16) sum += static_cast<double>(bits & 0xffffu);
    constexpr double mean = 2 * 65535.0, deviation = 65536.0 / 1.7320508;  // of the sum of four
    new (values + i) T(static_cast<T>((sum - mean) / deviation));
  }
  return {bytes, values};
}

template <class T>
struct operands {
  dense_shape shape;
  std::shared_ptr<T> q, k, v, out;
  std::vector<std::int32_t> documents;

  heed::tensor_view<const T, 3> query_view() const {
    return {q.get(), {shape.query_heads, shape.queries, shape.depth}};
  }
  heed::tensor_view<const T, 3> key_view() const {
    return {k.get(), {shape.kv_heads, shape.keys, shape.depth}};
  }
  heed::tensor_view<const T, 3> value_view() const {
    return {(shape.latent_depth != 0 ? k : v).get(),
            {shape.kv_heads, shape.keys, shape.value_depth()},
            {shape.keys * shape.depth, shape.depth, 1}};
  }
  heed::tensor_view<T, 3> out_view() const {
    return {out.get(), {shape.query_heads, shape.queries, shape.value_depth()}};
  }
};

template <class T>
operands<T> make_operands(const dense_shape& shape) {
  const index_t query_count = shape.query_heads * shape.queries * shape.depth;
  const index_t key_count = shape.kv_heads * shape.keys * shape.depth;
  return {shape,
          random_tensor<T>(query_count, 1),
          random_tensor<T>(key_count, 2),
          random_tensor<T>(key_count, 3),
          random_tensor<T>(query_count, 4),
          document_ids(shape.keys)};
}

/// Calls `visit` with std::type_identity of every listed backend that the target can run.
template <class... Backends, class Visit>
void for_each_available(Visit visit) {
  const auto visit_one = [&]<class Backend>(std::type_identity<Backend> backend) {
    if constexpr (heed::backend::available<Backend>) visit(backend);
  };
  (visit_one(std::type_identity<Backends>{}), ...);
}

/// One call of ours. `options` are passed on.
template <class Backend, mask_kind Mask, class T, class... Options>
void attend(const operands<T>& tensors, const Options&... options) {
  const auto q = tensors.query_view();
  const auto k = tensors.key_view();
  const auto v = tensors.value_view();
  const auto out = tensors.out_view();
  if constexpr (Mask == mask_kind::full) {
    heed::attention<Backend>(q, k, v, out, options...);
  } else if constexpr (Mask == mask_kind::causal) {
    heed::attention<Backend>(q, k, v, out, heed::causal{}, options...);
  } else if constexpr (Mask == mask_kind::window256) {
    heed::attention<Backend>(q, k, v, out, heed::window{255, 0}, options...);
  } else {
    const heed::tensor_view<const std::int32_t, 1> ids(tensors.documents.data(),
                                                       {tensors.shape.keys});
    heed::attention<Backend>(q, k, v, out, heed::documents{ids}, options...);
  }
  keep(*tensors.out);
}

/// The same by Eigen; full or causal.
template <class T>
void attend_by_eigen(const operands<T>& tensors, mask_kind mask) {
  const dense_shape& shape = tensors.shape;
  plain_eigen_attention(
      tensors.q.get(), tensors.k.get(), tensors.v.get(), tensors.out.get(),
      {1, shape.query_heads, shape.kv_heads, shape.queries, shape.keys, shape.depth, shape.depth},
      1 / std::sqrt(static_cast<double>(shape.depth)), mask == mask_kind::causal);
  keep(*tensors.out);
}

/// Processor time of this thread: what others take away by preemption does not count.
inline double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
template <class Body>
double cpu_seconds_of(const Body& body) {
  const double start = cpu_seconds();
  body();
  return cpu_seconds() - start;
}

/// Reading as many bytes as K and V have, from whichever memory holds that many: sizes of caches
/// say little where virtual machines share them.
inline burst read_ceiling(double key_value_bytes) {
  constexpr std::size_t multiple = 4096;
  return read_burst((static_cast<std::size_t>(key_value_bytes) + multiple - 1) / multiple *
                    multiple);
}

}  // namespace heed_bench
