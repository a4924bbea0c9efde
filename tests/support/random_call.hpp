// One attention call made up from bytes: shapes, layouts, element types and modifiers, compared
// with the oracle; and calls with one thing wrong, which must be refused without a write. The
// property test feeds it pseudo-random bytes, the fuzz target whatever the fuzzer finds.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "heed/dense/attention.hpp"
#include "heed/mask/array_mask.hpp"
#include "heed/mask/causal.hpp"
#include "heed/mask/documents.hpp"
#include "heed/mask/global_tokens.hpp"
#include "heed/mask/window.hpp"
#include "heed/reference/dense.hpp"
#include "heed/score/alibi.hpp"
#include "heed/score/bias.hpp"
#include "heed/score/score.hpp"
#include "heed/score/sink.hpp"
#include "heed/score/softcap.hpp"
#include "support/tensor.hpp"

namespace heed_test {

namespace reference = heed::reference;

// Hands out small numbers from bytes; 0 when they run out.
class byte_source {
 public:
  explicit byte_source(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  // In [0, limit).
  index_t below(index_t limit) {
    index_t value = 0;
    for (index_t reach = 1; reach < limit; reach *= 256) {
      value = value * 256 + (at_ < bytes_.size() ? bytes_[at_++] : 0);
    }
    return limit > 0 ? value % limit : 0;
  }
  bool flip() { return below(2) == 1; }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
};

// Empty if the call was right, else what was wrong with it.
template <class Backend>
class random_call {
 public:
  explicit random_call(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::string run() {
    switch (bytes_.below(4)) {
      case 0:
        return with_types<float, float, float>();
      case 1:
        return with_types<double, double, double>();
      case 2:
        return with_types<Eigen::bfloat16, Eigen::bfloat16, Eigen::bfloat16>();
      default:
        return with_types<Eigen::half, Eigen::half, Eigen::half>();
    }
  }

 private:
  template <class Q, class K, class Out>
  std::string with_types() {
    const index_t batches = bytes_.below(4), key_heads = 1 + bytes_.below(3);
    const index_t group = 1 + bytes_.below(5), heads = key_heads * group;
    const index_t queries = bytes_.flip() ? bytes_.below(9) : bytes_.below(140);
    const index_t keys = bytes_.flip() ? bytes_.below(20) : bytes_.below(600);
    const index_t depth = bytes_.below(140), value_depth = bytes_.below(140);
    const auto how = [&] { return layouts[static_cast<std::size_t>(bytes_.below(4))]; };
    const auto seed = static_cast<unsigned>(bytes_.below(65536));
    const double spread = bytes_.flip() ? 1 : 3;
    tensor<Q> q(batches, heads, queries, depth, how());
    tensor<K> k(batches, key_heads, keys, depth, how()),
        v(batches, key_heads, keys, value_depth, how());
    tensor<Out> out(batches, heads, queries, value_depth, how());
    q.fill(seed, spread), k.fill(seed + 1, spread), v.fill(seed + 2);
    reference::options wanted_options;
    if (bytes_.below(8) == 0) return refused(q, k, v, out);

    const auto compare = [&](const auto&... modifiers) -> std::string {
      using Real = heed::accumulator<Q, K, Out>;
      tensor<double> truth(batches, heads, queries, value_depth), plain = truth;
      std::vector<double> truth_lse;
      wanted_options.lse = &truth_lse;
      reference::attention(q.read(), k.read(), v.read(), truth.view(), wanted_options);
      wanted_options.lse = nullptr;
      reference::plain<Out>(q.read(), k.read(), v.read(), plain.view(), wanted_options);
      std::vector<Real> lse(truth_lse.size(), std::numeric_limits<Real>::quiet_NaN());
      heed::attention<Backend>(
          q.read(), k.read(), v.read(), out.view(), modifiers...,
          heed::lse_to{heed::tensor_view<Real, 3>(lse.data(), {batches, heads, queries})});
      if (out.overwritten_around() != 0) return "wrote outside of the output";
      const double error = worst_error(out.read(), truth.read());
      const double allowed = 1e-5 + 2 * worst_error(plain.read(), truth.read());
      if (!(error <= allowed)) {
        return "output is off by " + std::to_string(error) + ", allowed " + std::to_string(allowed);
      }
      using tiles = typename Backend::template tiles<Real, Q, Out, K, K>;
      constexpr double rounding = static_cast<double>(tiles::weight_rounding);
      for (std::size_t i = 0; i < lse.size(); ++i) {
        const double got = static_cast<double>(lse[i]), right = truth_lse[i];
        if (got != right && !(std::abs(got - right) <= 1e-4 + 1e-5 * std::abs(right) + rounding)) {
          return "lse " + std::to_string(i) + " is " + std::to_string(got) + " instead of " +
                 std::to_string(right);
        }
      }
      return "";
    };

    switch (bytes_.below(4)) {
      case 0:
        return compare();
      case 1: {
        // Arrays broadcast along any axes, a window, lengths, a cap.
        const index_t left = bytes_.flip() ? bytes_.below(200) : heed::window::unlimited;
        const index_t right = bytes_.flip() ? bytes_.below(200) : heed::window::unlimited;
        const heed::window window(left, right);
        std::vector<index_t> key_counts, query_counts;
        for (index_t b = 0; b < batches; ++b) {
          key_counts.push_back(keys - bytes_.below(keys + 1) / 2);
          query_counts.push_back(queries - bytes_.below(queries + 1) / 3);
        }
        const auto axis = [&](index_t extent) { return bytes_.flip() ? extent : index_t{1}; };
        const std::array<index_t, 4> shape = {axis(batches), axis(heads), axis(queries),
                                              axis(keys)};
        std::mt19937 generator(seed + 9);
        const auto count = static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]);
        std::vector<std::uint8_t> bits(count);
        std::vector<float> numbers(count);
        for (std::uint8_t& bit : bits) bit = generator() % 8 != 0;
        for (float& x : numbers) {
          x = generator() % 9 == 0 ? -std::numeric_limits<float>::infinity()
                                   : static_cast<float>(generator() % 100) * 0.02f;
        }
        const heed::array_mask mask{heed::tensor_view<const std::uint8_t, 4>(bits.data(), shape)};
        const heed::bias bias{heed::tensor_view<const float, 4>(numbers.data(), shape)};
        const double cap = bytes_.flip() ? 5 : 0;
        const heed::score capped{
            [cap](auto s, auto p) { return cap > 0 ? heed::softcap{cap}(s, p) : s; }};
        const double scale = 0.2 * static_cast<double>(bytes_.below(5)) - 0.3;
        const auto entry = [shape](const auto& array, const heed::position& p) {
          const index_t b = shape[0] == 1 ? 0 : p.batch, h = shape[1] == 1 ? 0 : p.head;
          const index_t i = shape[2] == 1 ? 0 : p.q, j = shape[3] == 1 ? 0 : p.k;
          return array[static_cast<std::size_t>(((b * shape[1] + h) * shape[2] + i) * shape[3] +
                                                j)];
        };
        wanted_options.scale = scale;
        wanted_options.key_lengths = key_counts;
        wanted_options.query_lengths = query_counts;
        wanted_options.visible = [&, entry](const heed::position& p) {
          const index_t distance = p.aligned_q() - p.k;
          return (left < 0 || distance <= left) && (right < 0 || -distance <= right) &&
                 entry(bits, p) != 0 &&
                 entry(numbers, p) != -std::numeric_limits<float>::infinity();
        };
        wanted_options.scores = {[&, entry](double s, const heed::position& p) {
                                   return s + static_cast<double>(entry(numbers, p));
                                 },
                                 [cap](double s, const heed::position&) {
                                   return cap > 0 ? cap * std::tanh(s / cap) : s;
                                 }};
        return compare(window, heed::key_lengths{key_counts}, mask, bias, capped,
                       heed::scale{scale}, heed::query_lengths{query_counts});
      }
      case 2: {
        // Masks by composition, distances, a sink.
        const index_t global = bytes_.below(4), reach = bytes_.below(90);
        std::vector<float> slopes(static_cast<std::size_t>(heads));
        for (std::size_t h = 0; h < slopes.size(); ++h)
          slopes[h] = 0.1f / static_cast<float>(h + 1);
        const float level = static_cast<float>(bytes_.below(9)) - 4;
        wanted_options.sinks.assign(slopes.size(), static_cast<double>(level));
        wanted_options.visible = [=](const heed::position& p) {
          const index_t distance = std::abs(p.aligned_q() - p.k);
          return (distance <= reach && p.k <= p.aligned_q()) || p.k < global ||
                 (p.aligned_q() >= 0 && p.aligned_q() < global);
        };
        wanted_options.scores = {[&](double s, const heed::position& p) {
          return s - static_cast<double>(slopes[static_cast<std::size_t>(p.head)]) *
                         std::abs(static_cast<double>(p.aligned_q() - p.k));
        }};
        return compare((heed::window{reach} & heed::causal{}) | heed::global_tokens{global},
                       heed::alibi{heed::tensor_view<const float, 1>(slopes.data(), {heads})},
                       heed::sink{level});
      }
      default: {
        const index_t skipped = bytes_.below(keys + 1);
        const std::vector<index_t> padding(static_cast<std::size_t>(batches), skipped);
        wanted_options.left_padding = padding;
        wanted_options.visible = [](const heed::position& p) { return p.k <= p.aligned_q(); };
        return compare(heed::left_padding{padding}, heed::causal{});
      }
    }
  }

  // The same operands with one thing wrong.
  template <class Q, class K, class Out>
  std::string refused(tensor<Q>& q, tensor<K>& k, tensor<K>& v, tensor<Out>& out) {
    auto q_view = q.read();
    auto k_view = k.read(), v_view = v.read();
    auto out_view = out.view();
    const auto grown = [&](auto view, int axis) {
      auto extents = view.extents();
      extents[static_cast<std::size_t>(axis)] += 1 + bytes_.below(3);
      return decltype(view)(view.data(), extents, view.strides());
    };
    switch (bytes_.below(6)) {
      case 0:
        k_view = grown(k_view, static_cast<int>(bytes_.below(4)) == 1 ? 0 : 2);
        break;
      case 1:
        v_view = grown(v_view, static_cast<int>(bytes_.below(3)));
        break;
      case 2:
        out_view = grown(out_view, static_cast<int>(bytes_.below(4)));
        break;
      case 3:
        q_view = grown(q_view, static_cast<int>(bytes_.below(3)) == 1 ? 3 : 2);
        break;
      case 4: {
        if (out_view.empty()) return "";
        out_view = heed::tensor_view<Out, 4>(nullptr, out_view.extents(), out_view.strides());
        break;
      }
      default: {
        if (out_view.extent(0) < 2) return "";
        auto strides = out_view.strides();
        strides[0] = 0;
        if (out_view.empty()) return "";
        out_view = heed::tensor_view<Out, 4>(out_view.data(), out_view.extents(), strides);
        break;
      }
    }
    try {
      heed::attention<Backend>(q_view, k_view, v_view, out_view);
      return "accepted operands that do not fit";
    } catch (const heed::invalid_argument& error) {
      if (std::string(error.what()).empty()) return "an error without a message";
    }
    bool untouched = true;
    out.for_each([&](Out& x) { untouched = untouched && is_nan(heed::widen<double>(x)); });
    return untouched ? "" : "wrote before it refused";
  }

  byte_source bytes_;
};

}  // namespace heed_test
