// Windows that a grid is cut into, shifted or not, as lists; the relative position bias of a window
// and the parts that a shift brings together in it.
#pragma once

#include "../../core/element.hpp"
#include "modifiers.hpp"
#include "tiling.hpp"

HEED_NAMESPACE_BEGIN
namespace neighborhood {

// The grid is rolled by −shift and cut into windows; the tokens of a window attend to each other.
// Tokens that were no neighbours before the grid was rolled get mask_value added to their score.
template <int N>
struct windows {
  coordinates<N> grid{};
  coordinates<N> window{};
  coordinates<N> shift{};
  double mask_value = -100;

  // As a pattern: blocks that attend to themselves.
  constexpr pattern<N> blocks() const { return {grid, window, window}; }
  // Raises where the windows do not divide the grid, or a shift leaves the window.
  HEED_NOINLINE void check() const {
    blocks().check();
    for (std::size_t a = 0; a < grid.size(); ++a) {
      if (grid[a] % window[a] != 0) {
        raise(message("windows: window ")
              << window[a] << " of axis " << a << " does not divide the grid extent " << grid[a]);
      }
      if (shift[a] < 0 || shift[a] >= window[a]) {
        raise(message("windows: shift ")
              << shift[a] << " of axis " << a << " must lie in [0, " << window[a] << ")");
      }
    }
    if (!(mask_value - mask_value == 0)) raise("windows: mask_value is not finite");
  }
};

namespace detail {

// s + bias[head, q, k], and what a shift adds in the windows at the border.
template <class Real>
struct window_bias {
  const Real* bias = nullptr;            // [heads, tokens, tokens]
  const Real* const* shifted = nullptr;  // [sequences] → [tokens, tokens] or null
  index_t tokens = 0;                    // of a window

  template <class S, class P>
  HEED_INLINE S operator()(S s, const P& p) const {
    s = s + along_keys<S>(bias + (p.head * tokens + p.q) * tokens, 1, p);
    const Real* parts = shifted[p.batch];
    return parts == nullptr ? s : s + along_keys<S>(parts + p.q * tokens, 1, p);
  }
};

template <int N, class Real>
class window_plan {
 public:
  // table(entry, head): entry of the distance query − key, row-major over [0, 2w − 2] per axis.
  template <class Table>
  window_plan(const windows<N>& which, index_t batches, index_t heads, const Table& table,
              workspace& memory)
      : which_(which) {
    index_t tokens = 1;
    lists_.batches = batches;
    lists_.tiles = 1;
    for (int a = 0; a < N; ++a) {
      const auto i = static_cast<std::size_t>(a);
      tokens *= which.window[i];
      counts_[i] = which.grid[i] / which.window[i];
      lists_.tiles *= counts_[i];
    }
    lists_.most_queries = lists_.most_keys = tokens;
    lists_.tokens = which.blocks().tokens();
    const auto lay_out = [&](heed::detail::bump& from) {
      lists_.take(from);
      shifted_ = from.take<const Real*>(lists_.sequences());
      bias_ = from.take<Real>(heads * tokens * tokens);
      parts_ = from.take<Real>((index_t{1} << N) * tokens * tokens);
    };
    heed::detail::bump counted;
    lay_out(counted);
    heed::detail::bump taken(memory.reserve(counted.bytes()));
    lay_out(taken);
    list_windows();
    lay_bias(heads, table);
  }

  const tile_lists& lists() const { return lists_; }
  window_bias<Real> bias() const { return {bias_, shifted_, lists_.most_keys}; }

 private:
  void list_windows() {
    const index_t tokens = lists_.most_keys;
    index_t number = 0;
    for_each_place<N>(counts_, [&](const coordinates<N>& at) {
      index_t place = 0, kind = 0;
      for_each_place<N>(which_.window, [&](const coordinates<N>& within) {
        coordinates<N> token;
        for (std::size_t a = 0; a < at.size(); ++a) {
          token[a] = (at[a] * which_.window[a] + within[a] + which_.shift[a]) % which_.grid[a];
        }
        lists_.key_rows[number * tokens + place] = lists_.query_rows[number * tokens + place] =
            which_.blocks().token(token);
        ++place;
      });
      lists_.query_counts[number] = lists_.key_counts[number] = tokens;
      for (std::size_t a = 0; a < at.size(); ++a) {
        kind = kind * 2 + (which_.shift[a] > 0 && at[a] + 1 == counts_[a]);
      }
      for (index_t b = 0; b < lists_.batches; ++b) {
        shifted_[b * lists_.tiles + number] = kind == 0 ? nullptr : parts_ + kind * tokens * tokens;
      }
      ++number;
    });
    lists_.repeat();
  }

  template <class Table>
  void lay_bias(index_t heads, const Table& table) {
    const index_t tokens = lists_.most_keys;
    index_t pair = 0;
    for_each_place<N>(which_.window, [&](const coordinates<N>& q) {
      for_each_place<N>(which_.window, [&](const coordinates<N>& k) {
        index_t entry = 0, apart = 0;
        for (std::size_t a = 0; a < q.size(); ++a) {
          entry = entry * (2 * which_.window[a] - 1) + q[a] - k[a] + which_.window[a] - 1;
          const index_t border = which_.window[a] - which_.shift[a];
          apart = apart * 2 + ((q[a] < border) != (k[a] < border));
        }
        for (index_t head = 0; head < heads; ++head) {
          bias_[head * tokens * tokens + pair] = table(entry, head);
        }
        for (index_t kind = 0; kind < index_t{1} << N; ++kind) {
          parts_[kind * tokens * tokens + pair] =
              (kind & apart) != 0 ? static_cast<Real>(which_.mask_value) : Real(0);
        }
        ++pair;
      });
    });
  }

  windows<N> which_;
  coordinates<N> counts_{};
  tile_lists lists_;
  const Real** shifted_ = nullptr;  // [sequences]
  Real* bias_ = nullptr;            // [heads, tokens, tokens]
  Real* parts_ = nullptr;           // [2^N kinds, tokens, tokens]
};

}  // namespace detail
}  // namespace neighborhood
HEED_NAMESPACE_END
