// Runs a checked call of linear attention: one item per sequence and head of the state, chunk after
// chunk. Items are independent; chunks are cut by shape alone.
#pragma once

#include <algorithm>
#include <cstddef>

#include "../../core/tensor_view.hpp"
#include "../feature_map.hpp"
#include "../options.hpp"

HEED_NAMESPACE_BEGIN
namespace linear::detail {

struct no_decay {
  static constexpr decay_kind kind = decay_kind::none;
  void check(const char*, const gate_shape&, const engine::batch_layout&) const {}
  template <class Backend, class Real>
  void load(const token_run&, index_t, Real*, index_t) const {}
};
struct no_normalizer {
  template <class Real>
  Real operator()(Real) const {
    return Real(1);
  }
};

// A call after its arguments were checked. Operands have rank 4; strength, bonus and states have no
// data where the call has none of them.
template <class Query, class Key, class Value, class Out, class Map, class Decay, class Normalizer,
          class Strength, class Bonus, class Initial, class Final>
struct call {
  tensor_view<const Query, 4> q;
  tensor_view<const Key, 4> k;
  tensor_view<const Value, 4> v;
  tensor_view<Out, 4> out;
  const Map& map;
  const Decay& decay;
  const Normalizer& normalizer;
  tensor_view<const Strength, 4> strength;
  tensor_view<const Bonus, 2> bonus;
  tensor_view<const Initial, 4> initial;
  tensor_view<const Initial, 3> initial_sum;
  tensor_view<Final, 4> final;
  tensor_view<Final, 3> final_sum;
  engine::batch_layout queries, keys;
  double scale = 1;
  index_t chunk = 32;
  bool is_delta = false, has_strength = false, has_initial = false, reads_before = false,
       is_normalized = false, is_bidirectional = false;

  index_t state_heads() const { return std::max(k.extent(1), v.extent(1)); }
  index_t features() const { return map.features(k.extent(3)); }
};

template <class Backend, class Real, class Call>
class runner {
 public:
  explicit runner(const Call& call) : call_(call) {
    shape_.keys = call.features();
    shape_.values = call.v.extent(3);
    const index_t longest = std::max(call.queries.longest(), call.keys.longest());
    shape_.capacity = std::max<index_t>(1, std::min(call.chunk, longest));
    shape_.decay = std::remove_cvref_t<decltype(call.decay)>::kind;
    shape_.delta = call.is_delta;
    shape_.before = call.reads_before;
    shape_.normalised = call.is_normalized;
  }

  template <class Executor>
  void run(Executor& executor, workspace& memory) {
    const index_t items = call_.keys.sequences * call_.state_heads();
    const index_t workers = executor.workers();
    heed::detail::bump counted;
    (void)scratch(shape_, call_, counted);
    const index_t bytes = counted.bytes();
    std::byte* first = memory.reserve(bytes * workers);
    executor.run(items, [&](index_t item, int worker) {
      heed::detail::bump mine(first + bytes * worker);
      scratch s(shape_, call_, mine);
      run_item(item, s);
    });
  }

 private:
  using vectors = backend::vectors<Backend, Real>;
  static constexpr Real log2_e = Real(1.44269504088896340735992L);
  // exp2 of it is 0, and sums of many stay finite.
  static constexpr Real lowest_decay = sizeof(Real) == 4 ? Real(-180) : Real(-1200);

  struct scratch {
    chunk_kernel<Backend, Real> kernel;
    Real* raw = nullptr;  // rows before the feature map
    index_t raw_row = 0;
    Real* bonus = nullptr;
    index_t sequence = 0;
    index_t length = 0;  // of its queries or its keys
    scratch(const chunk_shape& shape, const Call& call, heed::detail::bump& memory)
        : kernel(shape, memory), raw_row(vectors::padded(call.k.extent(3))) {
      raw = memory.take<Real>(shape.capacity * raw_row);
      bonus = memory.take<Real>(kernel.key_row());
    }
  };

  void run_item(index_t item, scratch& s) {
    const index_t heads = call_.state_heads();
    const index_t sequence = item / heads, head = item % heads;
    auto& kernel = s.kernel;
    kernel.bonus = nullptr;
    if (call_.bonus.data() != nullptr) {
      vectors::load_row(call_.bonus.row(head / (heads / call_.bonus.extent(0))), shape_.keys,
                        s.bonus);
      kernel.bonus = s.bonus;
    }
    load_state(sequence, head, kernel);
    const engine::rows_of_sequence keys = call_.keys.at(sequence);
    const engine::rows_of_sequence queries = call_.queries.at(sequence);
    s.sequence = sequence, s.length = std::max(keys.count, queries.count);
    if (call_.is_bidirectional && keys.count == 0 && call_.initial.data() == nullptr) {
      clear_rows(queries.batch, head, queries.begin, queries.begin + queries.count);
    } else if (call_.is_bidirectional) {
      for_each_chunk(keys, [&](index_t t, index_t n) {
        load_keys(keys, head, t, n, s);
        kernel.write_all(n);
      });
      for_each_chunk(queries, [&](index_t t, index_t n) {
        for_each_output(head, [&](index_t output) {
          load_queries(queries, output, t, n, s);
          kernel.read_all(n);
          store(queries, output, t, n, kernel);
        });
      });
    } else {
      for_each_chunk(keys, [&](index_t t, index_t n) {
        load_keys(keys, head, t, n, s);
        kernel.begin(n);
        for_each_output(head, [&](index_t output) {
          load_queries(queries, output, t, n, s);
          kernel.read();
          store(queries, output, t, n, kernel);
        });
        kernel.end();
      });
    }
    // Rows behind a sequence's end come out as 0.
    if (call_.queries.cumulative == nullptr) {
      clear_rows(sequence, head, queries.begin + queries.count, call_.out.extent(2));
    }
    store_state(sequence, head, kernel);
  }

  template <class Visit>
  void for_each_chunk(const engine::rows_of_sequence& rows, const Visit& visit) const {
    for (index_t t = 0; t < rows.count; t += shape_.capacity) {
      visit(t, std::min(shape_.capacity, rows.count - t));
    }
  }
  // The output heads that read the state of a head.
  template <class Visit>
  void for_each_output(index_t head, const Visit& visit) const {
    const index_t group = call_.out.extent(1) / call_.state_heads();
    for (index_t i = 0; i < group; ++i) visit(head * group + i);
  }
  // Head of an operand for one of `all` heads.
  static index_t head_of(index_t head, index_t all, index_t heads) { return head / (all / heads); }

  // Rows of one operand through the feature map, times factor.
  template <class T>
  void load_rows(const tensor_view<const T, 4>& x, const engine::rows_of_sequence& rows,
                 index_t head, index_t t, index_t n, bool queries, Real factor, scratch& s,
                 Real* to) {
    const index_t row = s.kernel.key_row();
    const T* first = x.row(rows.batch, head, rows.begin + t);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(call_.map)>, identity>) {
      for (index_t i = 0; i < n; ++i) {
        vectors::load_row(first + i * x.stride(2), shape_.keys, to + i * row);
      }
    } else {
      for (index_t i = 0; i < n; ++i) {
        vectors::load_row(first + i * x.stride(2), x.extent(3), s.raw + i * s.raw_row);
      }
      const token_rows<Real> tokens{s.raw, s.raw_row, n,        x.extent(3), s.sequence,
                                    head,  t,         s.length, queries};
      call_.map.template map<Backend, Real>(tokens, to, row);
      for (index_t i = 0; i < n; ++i) {
        for (index_t c = shape_.keys; c < row; ++c) to[i * row + c] = 0;
      }
    }
    if (factor == Real(1)) return;
    for (index_t i = 0; i < n; ++i) vectors::scale(to + i * row, row, factor, to + i * row);
  }

  void load_keys(const engine::rows_of_sequence& rows, index_t head, index_t t, index_t n,
                 scratch& s) {
    auto& kernel = s.kernel;
    const index_t heads = call_.state_heads();
    load_rows(call_.k, rows, head_of(head, heads, call_.k.extent(1)), t, n, false, Real(1), s,
              kernel.k);
    const index_t value_head = head_of(head, heads, call_.v.extent(1));
    for (index_t i = 0; i < n; ++i) {
      vectors::load_row(call_.v.row(rows.batch, value_head, rows.begin + t + i), shape_.values,
                        kernel.v + i * kernel.value_row());
    }
    const token_run run{rows.batch, head, heads, rows.begin + t, n};
    load_decays(run, kernel);
    if (call_.strength.data() == nullptr) {
      if (shape_.delta) std::fill_n(kernel.strength, n, Real(1));
      return;
    }
    token_values<std::remove_cvref_t<decltype(*call_.strength.data())>>{call_.strength}
        .template load<Backend, Real>(run, 1, kernel.strength, 1);
    for (index_t i = 0; !shape_.delta && i < n; ++i) {
      Real* row = kernel.k + i * kernel.key_row();
      vectors::scale(row, kernel.key_row(), kernel.strength[i], row);
    }
  }
  void load_decays(const token_run& run, chunk_kernel<Backend, Real>& kernel) {
    if constexpr (std::remove_cvref_t<decltype(call_.decay)>::kind != decay_kind::none) {
      using pack = typename vectors::pack_type;
      call_.decay.template load<Backend, Real>(run, shape_.keys, kernel.decay, kernel.key_row());
      index_t count = run.count;
      if (shape_.decay == decay_kind::channel) {
        count *= kernel.key_row();
      } else {
        for (; count % vectors::lanes != 0; ++count) kernel.decay[count] = 0;
      }
      for (index_t i = 0; i < count; i += vectors::lanes) {
        const pack logs = load_pack<pack>(kernel.decay + i) * pack(log2_e);
        // A NaN passes: only what is surely lower is replaced.
        store_pack(kernel.decay + i, select(logs < pack(lowest_decay), lowest_decay, logs));
      }
    }
  }
  void load_queries(const engine::rows_of_sequence& rows, index_t output, index_t t, index_t n,
                    scratch& s) {
    load_rows(call_.q, rows, head_of(output, call_.out.extent(1), call_.q.extent(1)), t, n, true,
              static_cast<Real>(call_.scale), s, s.kernel.q);
  }
  void store(const engine::rows_of_sequence& rows, index_t output, index_t t, index_t n,
             const chunk_kernel<Backend, Real>& kernel) {
    for (index_t i = 0; i < n; ++i) {
      const Real factor =
          shape_.normalised ? static_cast<Real>(call_.normalizer(kernel.denominator[i])) : Real(1);
      vectors::store_row(kernel.out + i * kernel.value_row(), shape_.values, factor,
                         call_.out.row(rows.batch, output, rows.begin + t + i));
    }
  }

  // Where there is nothing to read, whatever the normaliser makes of a sum of 0.
  void clear_rows(index_t batch, index_t head, index_t begin, index_t end) {
    for_each_output(head, [&](index_t output) {
      for (index_t t = begin; t < end; ++t) {
        auto* row = call_.out.row(batch, output, t);
        for (index_t d = 0; d < shape_.values; ++d)
          row[d] = narrow<std::remove_cvref_t<decltype(row[d])>>(Real(0));
      }
    });
  }

  void load_state(index_t sequence, index_t head, chunk_kernel<Backend, Real>& kernel) {
    vectors::clear(kernel.state, shape_.keys * kernel.value_row());
    vectors::clear(kernel.key_sum, kernel.key_row());
    if (call_.initial.data() == nullptr) return;
    for (index_t c = 0; c < shape_.keys; ++c) {
      vectors::load_row(call_.initial.row(sequence, head, c), shape_.values,
                        kernel.state + c * kernel.value_row());
    }
    if (call_.initial_sum.data() == nullptr) return;
    vectors::load_row(call_.initial_sum.row(sequence, head), shape_.keys, kernel.key_sum);
  }
  void store_state(index_t sequence, index_t head, const chunk_kernel<Backend, Real>& kernel) {
    if (call_.final.data() == nullptr) return;
    for (index_t c = 0; c < shape_.keys; ++c) {
      vectors::store_row(kernel.state + c * kernel.value_row(), shape_.values, Real(1),
                         call_.final.row(sequence, head, c));
    }
    if (call_.final_sum.data() == nullptr) return;
    vectors::store_row(kernel.key_sum, shape_.keys, Real(1), call_.final_sum.row(sequence, head));
  }

  const Call& call_;
  chunk_shape shape_;
};

}  // namespace linear::detail
HEED_NAMESPACE_END
