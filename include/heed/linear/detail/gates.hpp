// Numbers per head, token, or token and channel: how gates are read.
#pragma once

#include <array>

#include "../../backend/vectors.hpp"
#include "../../core/check_data.hpp"
#include "../../engine/problem.hpp"
#include "chunk.hpp"

HEED_NAMESPACE_BEGIN
namespace linear::detail {

// What a call's gates are compared with.
struct gate_shape {
  index_t batches = 0;  // of the operands
  index_t heads = 0;    // of the state
  index_t length = 0;
  index_t keys = 0;  // features
};

// Where a run of tokens lies: batch, head of the state among all, first token along the axis.
struct token_run {
  index_t batch = 0, head = 0, heads = 1, token = 0, count = 0;
};

HEED_NOINLINE inline void require_equal(const char* name, const char* what, index_t value,
                                        const char* other, index_t expected) {
  if (value != expected) {
    raise(message(name) << ": " << what << " " << value << " differs from " << other << " "
                        << expected);
  }
}
HEED_NOINLINE inline void require_divides(const char* name, index_t heads, const char* of,
                                          index_t all) {
  if (all != 0 && (heads == 0 || all % heads != 0)) {
    raise(message(name) << ": head count " << heads << " does not divide " << of << " " << all);
  }
}

// [B, H, L] as [B, H, L, 1]
template <class T, int Rank>
tensor_view<T, 4> one_per_token(const tensor_view<T, Rank>& x) {
  if constexpr (Rank == 4) {
    return x;
  } else {
    const auto y = x.template lifted<3>();
    return tensor_view<T, 4>(y.data(), {y.extent(0), y.extent(1), y.extent(2), 1},
                             {y.stride(0), y.stride(1), y.stride(2), 1});
  }
}

using heed::detail::check_data;

template <class T, int Rank>
void require_shape(const char* name, const tensor_view<T, Rank>& x,
                   const std::array<index_t, static_cast<std::size_t>(Rank)>& wanted) {
  check_data(name, x);
  for (int axis = 0; axis < Rank; ++axis) {
    const index_t expected = wanted[static_cast<std::size_t>(axis)];
    if (x.extent(axis) != expected) {
      raise(message(name) << ": axis " << axis << " has extent " << x.extent(axis) << ", must have "
                          << expected);
    }
  }
}

// A logarithm of a decay that is above 0 would let the state grow without bound. Index of the first
// such number of a row, or −1.
template <class T>
index_t first_above_zero(const T* row, index_t n) {
  using vectors = backend::vectors<backend::native, float>;
  using pack = typename vectors::pack_type;
  index_t i = 0;
  if constexpr (!std::is_same_v<std::remove_cv_t<T>, double>) {
    pack most(0.0f);
    for (; i + vectors::lanes <= n; i += vectors::lanes) {
      most = max(most, vectors::lanes_type::template load<std::remove_cv_t<T>>(row + i));
    }
    if (max_lanes(most) > 0) i = 0;
  }
  for (; i < n; ++i) {
    if (widen<double>(row[i]) > 0) return i;
  }
  return -1;
}

template <class T>
struct head_values {
  tensor_view<const T, 1> values;

  void check(const char* name, const gate_shape& shape, const engine::batch_layout&) const {
    check_data(name, values);
    require_divides(name, values.extent(0), "the state's", shape.heads);
    for (index_t h = 0; h < values.extent(0); ++h) {
      if (const double value = widen<double>(values(h)); value > 0) {
        raise(message(name) << ": log decay " << value << " of head " << h << " is above 0");
      }
    }
  }
  template <class Backend, class Real>
  void load(const token_run& at, index_t, Real* to, index_t) const {
    const Real value = widen<Real>(values(at.head / (at.heads / values.extent(0))));
    for (index_t t = 0; t < at.count; ++t) to[t] = value;
  }
};

template <class T>
struct token_values {
  tensor_view<const T, 4> values;

  void check_shape(const char* name, const gate_shape& shape) const {
    check_data(name, values);
    require_equal(name, "batch", values.extent(0), "the call's", shape.batches);
    require_divides(name, values.extent(1), "the state's", shape.heads);
    require_equal(name, "length", values.extent(2), "that of k,", shape.length);
    require_equal(name, "numbers per token", values.extent(3), "the only one:", 1);
  }
  // As log decays, of the tokens that exist.
  void check(const char* name, const gate_shape& shape, const engine::batch_layout& tokens) const {
    check_shape(name, shape);
    for (index_t s = 0; s < tokens.sequences; ++s) {
      const engine::rows_of_sequence rows = tokens.at(s);
      for (index_t h = 0; h < values.extent(1) && rows.count > 0; ++h) {
        const bool dense = values.stride(2) == 1;
        const index_t run = dense ? rows.count : 1;
        for (index_t t = rows.begin; t < rows.begin + rows.count; t += run) {
          const T* first = &values(rows.batch, h, t, 0);
          if (const index_t i = first_above_zero(first, run); i >= 0) {
            raise(message(name) << ": log decay " << widen<double>(first[i]) << " at batch "
                                << rows.batch << ", head " << h << ", token " << t + i
                                << " is above 0");
          }
        }
      }
    }
  }
  template <class Backend, class Real>
  void load(const token_run& at, index_t, Real* to, index_t) const {
    const index_t head = at.head / (at.heads / values.extent(1));
    for (index_t t = 0; t < at.count; ++t) {
      to[t] = widen<Real>(values(at.batch, head, at.token + t, 0));
    }
  }
};

template <class T>
struct channel_values {
  tensor_view<const T, 4> values;

  void check(const char* name, const gate_shape& shape, const engine::batch_layout& tokens) const {
    check_data(name, values);
    require_equal(name, "batch", values.extent(0), "the call's", shape.batches);
    require_divides(name, values.extent(1), "the state's", shape.heads);
    require_equal(name, "length", values.extent(2), "that of k,", shape.length);
    require_equal(name, "depth", values.extent(3), "the number of features", shape.keys);
    for (index_t s = 0; s < tokens.sequences; ++s) {
      const engine::rows_of_sequence rows = tokens.at(s);
      for (index_t h = 0; h < values.extent(1); ++h) {
        for (index_t t = rows.begin; t < rows.begin + rows.count; ++t) {
          const T* row = values.row(rows.batch, h, t);
          if (const index_t c = first_above_zero(row, values.extent(3)); c >= 0) {
            raise(message(name) << ": log decay " << widen<double>(row[c]) << " at batch "
                                << rows.batch << ", head " << h << ", token " << t << ", channel "
                                << c << " is above 0");
          }
        }
      }
    }
  }
  template <class Backend, class Real>
  void load(const token_run& at, index_t keys, Real* to, index_t row) const {
    const index_t head = at.head / (at.heads / values.extent(1));
    for (index_t t = 0; t < at.count; ++t) {
      backend::vectors<Backend, Real>::load_row(values.row(at.batch, head, at.token + t), keys,
                                                to + t * row);
    }
  }
};

}  // namespace linear::detail
HEED_NAMESPACE_END
