// LSH attention (Kitaev et al., "Reformer: The Efficient Transformer", 2020): queries and keys are
// the same vectors, and a query attends to what falls into its hash bucket or near it.
//
//   bucket_r(x)  = argmax [x R_r; −x R_r]                 R_r [D, buckets / 2], a random rotation
//   every round r sorts the tokens by (bucket, position) and cuts the order into chunks; a chunk
//   attends to itself and to the chunk before it; chunks of all rounds form one circle
//   score(i, j)  = scale·x_i·x_j/|x_j|;  self_score for j = i: oneself only as the last resort
//   out_i        = Σ_r exp(lse_r − lse) out_r             rounds merged by their log-sum-exp
//
//   x [B, H, L, D], v [B, H, L, Dv], out [B, H, L, Dv]; L a multiple of the chunk
//   buckets [B, H, rounds, L], of any numbers: lsh_buckets computes them
//
// A pair that meets in several rounds counts several times, unless `duplicates` is off: then its
// score is lowered by log(count + 1e-9), count being the number of rounds in which the two stand in
// one chunk or in neighbouring ones. As in the authors' code, a pair that meets only where the last
// chunk of one round precedes the first of the next has count 0 and gains 20.7.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../core/check_data.hpp"
#include "../dense/attention.hpp"
#include "../dense/merge.hpp"
#include "estimate.hpp"
#include "gathered_call.hpp"

HEED_NAMESPACE_BEGIN
namespace sparse {

struct lsh_options {
  index_t chunk = 64;
  bool causal = false;
  bool across_buckets = true;  // whether tokens of other buckets in the two chunks are seen
  bool duplicates = true;      // whether a pair counts once for every round in which it meets
  double self_score = -5e4;
};

// Bucket numbers [B, H, rounds, L] by rotations [D, rounds, buckets / 2]; the lower number where
// two are equally near.
template <viewable X, class R, executor E = const serial>
std::vector<index_t> lsh_buckets(const X& x, const tensor_view<R, 3>& rotations, E&& runner = {}) {
  const auto rows = estimation::rows_of("x", x);
  const index_t heads = rows.extent(1), length = rows.extent(2), depth = rows.extent(3);
  const index_t rounds = rotations.extent(1), half = rotations.extent(2);
  if (rotations.extent(0) != depth) {
    raise(message("rotations: depth ") << rotations.extent(0) << " differs from x's " << depth);
  }
  heed::detail::check_data("rotations", rotations);
  std::vector<index_t> buckets(static_cast<std::size_t>(rows.extent(0) * heads * rounds * length));
  runner.run(rows.extent(0) * heads, [&](index_t item, int) {
    std::vector<double> turned(static_cast<std::size_t>(half));
    for (index_t r = 0; r < rounds; ++r) {
      for (index_t i = 0; i < length; ++i) {
        const auto* row = rows.row(item / heads, item % heads, i);
        std::fill(turned.begin(), turned.end(), 0.0);
        for (index_t d = 0; d < depth; ++d) {
          const double value = widen<double>(row[d]);
          const R* by = rotations.row(d, r);
          for (index_t c = 0; c < half; ++c) {
            turned[static_cast<std::size_t>(c)] += value * widen<double>(by[c]);
          }
        }
        index_t best = 0;
        const auto at = [&](index_t c) {
          return c < half ? turned[static_cast<std::size_t>(c)]
                          : -turned[static_cast<std::size_t>(c - half)];
        };
        for (index_t c = 1; c < 2 * half; ++c) best = at(c) > at(best) ? c : best;
        buckets[static_cast<std::size_t>((item * rounds + r) * length + i)] = best;
      }
    }
  });
  return buckets;
}

// The sorted order of all rounds of one batch entry and head, and what the scores look up in it.
class lsh_order {
 public:
  lsh_order(const tensor_view<const index_t, 4>& buckets, const lsh_options& how)
      : how_(how),
        heads_(buckets.extent(1)),
        rounds_(buckets.extent(2)),
        length_(buckets.extent(3)),
        chunks_(rounds_ * length_ / how.chunk),
        tokens_(static_cast<std::size_t>(buckets.size())),
        places_(tokens_.size()),
        buckets_(buckets) {
    for (index_t item = 0; item < buckets.extent(0) * heads_; ++item) {
      for (index_t r = 0; r < rounds_; ++r) {
        const index_t* of = buckets.row(item / heads_, item % heads_, r);
        index_t* order = tokens_.data() + (item * rounds_ + r) * length_;
        std::iota(order, order + length_, index_t{0});
        std::stable_sort(order, order + length_,
                         [&](index_t a, index_t b) { return of[a] < of[b]; });
        index_t* place = places_.data() + (item * rounds_ + r) * length_;
        for (index_t i = 0; i < length_; ++i) place[order[i]] = r * length_ + i;
      }
    }
    // Rows of queries, of what they write, and of keys: the own chunk and the one before.
    for (index_t s = 0; s < sequences(); ++s) {
      for (index_t side = 0; side < 2; ++side) {
        const index_t chunk = (s % chunks_ - side + chunks_) % chunks_;
        for (index_t i = 0; i < how.chunk; ++i) {
          const index_t at = chunk * how.chunk + i;
          const index_t token =
              tokens_[static_cast<std::size_t>(s / chunks_ * rounds_ * length_ + at)];
          keys_.push_back(token);
          if (side == 0) {
            queries_.push_back(token);
            written_.push_back(at / length_ * length_ + token);
          }
        }
      }
    }
  }

  index_t sequences() const { return buckets_.extent(0) * heads_ * chunks_; }
  index_t rounds() const { return rounds_; }
  index_t chunk() const { return how_.chunk; }
  const lsh_options& options() const { return how_; }
  // Tokens of a sequence's queries and keys.
  const index_t* query_tokens(index_t s) const { return queries_.data() + s * how_.chunk; }
  const index_t* key_tokens(index_t s) const { return keys_.data() + 2 * s * how_.chunk; }
  using rows = tensor_view<const index_t, 3>;
  rows queries() const { return {queries_.data(), {sequences(), 1, how_.chunk}}; }
  rows written() const { return {written_.data(), {sequences(), 1, how_.chunk}}; }
  rows keys() const { return {keys_.data(), {sequences(), 1, 2 * how_.chunk}}; }

  // Whether a position of the sorted call is in the query's past (or itself), and in its bucket.
  bool visible(const position& p) const {
    const index_t q = query_tokens(p.batch)[p.q], k = key_tokens(p.batch)[p.k];
    if (how_.causal && k > q) return false;
    if (how_.across_buckets) return true;
    const index_t chunk = p.batch % chunks_;
    const index_t from = p.k < how_.chunk ? chunk : (chunk + chunks_ - 1) % chunks_;
    const index_t round = chunk * how_.chunk / length_, key_round = from * how_.chunk / length_;
    return round == key_round && bucket(p.batch, round, q) == bucket(p.batch, round, k);
  }
  // Rounds in which two tokens meet, as the authors count them.
  index_t meetings(index_t s, index_t q, index_t k) const {
    index_t count = 0;
    for (index_t r = 0; r < rounds_; ++r) {
      const index_t mine = place(s, r, q) / how_.chunk, other = place(s, r, k) / how_.chunk;
      const bool near = mine == other || mine == (other + 1) % chunks_;
      count += near && (how_.across_buckets || bucket(s, r, q) == bucket(s, r, k));
      if (chunks_ == 1 && near) ++count;  // its own neighbour
    }
    return count;
  }

 private:
  index_t place(index_t s, index_t round, index_t token) const {
    return places_[static_cast<std::size_t>((s / chunks_ * rounds_ + round) * length_ + token)];
  }
  index_t bucket(index_t s, index_t round, index_t token) const {
    const index_t item = s / chunks_;
    return buckets_(item / heads_, item % heads_, round, token);
  }

  lsh_options how_;
  index_t heads_, rounds_, length_, chunks_;
  std::vector<index_t> tokens_, places_, queries_, written_, keys_;
  tensor_view<const index_t, 4> buckets_;
};

struct lsh_mask {
  const lsh_order* order;
  bool operator()(const position& p) const { return order->visible(p); }
};
struct lsh_score {
  const lsh_order* order;
  template <class S>
  requires std::is_arithmetic_v<S> S operator()(S s, const position& p) const {
    const index_t q = order->query_tokens(p.batch)[p.q], k = order->key_tokens(p.batch)[p.k];
    const S score = q == k ? static_cast<S>(order->options().self_score) : s;
    if (order->options().duplicates) return score;
    return score - std::log(static_cast<S>(order->meetings(p.batch, q, k)) + static_cast<S>(1e-9));
  }
};
// Where pairs count as often as they meet, many keys at a time.
struct lsh_self_score {
  const lsh_order* order;
  template <class S>
  requires std::is_arithmetic_v<S> S operator()(S s, const position& p) const {
    const bool self = order->query_tokens(p.batch)[p.q] == order->key_tokens(p.batch)[p.k];
    return self ? static_cast<S>(order->options().self_score) : s;
  }
  template <class Real, int N>
  HEED_INLINE pack<Real, N> operator()(pack<Real, N> s, const pack_position<Real, N>& p) const {
    const index_t q = order->query_tokens(p.batch)[p.q];
    const index_t* keys = order->key_tokens(p.batch) + p.first_key;
    std::uint64_t self = 0;
    for (int lane = 0; lane < p.valid; ++lane) {
      self |= static_cast<std::uint64_t>(keys[lane] == q) << lane;
    }
    if (self == 0) return s;
    return select(from_bits<Real, N>(self), static_cast<Real>(order->options().self_score), s);
  }
};

// Options: scale, on, scratch, count_tiles.
template <class Backend = backend::native, viewable X, viewable V, viewable Out, class... Modifiers>
void lsh_attention(const X& shared, const V& values, Out&& result,
                   const tensor_view<const index_t, 4>& buckets, const lsh_options& how,
                   const Modifiers&... modifiers) {
  static_assert((... && (heed::detail::is_any_of<Modifiers, scale, scratch, count_tiles> ||
                         heed::detail::is_on<Modifiers>)),
                "heed::sparse::lsh_attention takes scale, on, scratch and count_tiles");
  const auto x = estimation::rows_of("x", shared);
  const auto v = estimation::rows_of("v", values);
  const auto out = output_view_of(result).template lifted<4>();
  using Real = accumulator<view_element<X>, view_element<V>,
                           typename std::remove_cvref_t<decltype(out)>::value_type>;
  const index_t batches = x.extent(0), heads = x.extent(1), length = x.extent(2);
  const index_t depth = x.extent(3), value_depth = v.extent(3), rounds = buckets.extent(2);
  const auto same = [](const char* name, const char* axis, index_t mine, index_t wanted) {
    if (mine != wanted) {
      raise(message(name) << ": " << axis << " " << mine << " differs from x's " << wanted);
    }
  };
  const auto as_x = [&](const char* name, const auto& y) {
    same(name, "batch", y.extent(0), batches);
    same(name, "head count", y.extent(1), heads);
  };
  as_x("v", v), as_x("out", out), as_x("buckets", buckets);
  same("v", "length", v.extent(2), length);
  same("out", "length", out.extent(2), length);
  same("buckets", "length", buckets.extent(3), length);
  if (out.extent(3) != value_depth) {
    raise(message("out: depth ") << out.extent(3) << " differs from v's " << value_depth);
  }
  heed::detail::check_data("buckets", buckets);
  if (rounds < 1) raise(message("buckets: ") << rounds << " rounds, must be positive");
  if (how.chunk < 1 || length % how.chunk != 0) {
    raise(message("lsh: chunk ") << how.chunk << " does not divide length " << length);
  }
  if (batches * heads * length == 0) return;

  const lsh_order order(buckets, how);
  // Unit keys; every round's output and log-sum-exp, token by token.
  std::vector<Real> units(static_cast<std::size_t>(batches * heads * length * depth));
  const tensor_view<Real, 4> keys(units.data(), {batches, heads, length, depth});
  for (index_t i = 0; i < batches * heads * length; ++i) {
    const index_t b = i / length / heads, h = i / length % heads;
    const auto* row = x.row(b, h, i % length);
    Real norm = 0;
    for (index_t d = 0; d < depth; ++d) norm += widen<Real>(row[d]) * widen<Real>(row[d]);
    norm = std::max(std::sqrt(norm), Real(1e-12));
    for (index_t d = 0; d < depth; ++d) keys(b, h, i % length, d) = widen<Real>(row[d]) / norm;
  }
  std::vector<Real> parts_out(
      static_cast<std::size_t>(batches * heads * rounds * length * value_depth));
  std::vector<Real> listed(static_cast<std::size_t>(batches * heads * rounds * length)),
      by_token(listed.size());
  const tensor_view<Real, 4> partial(parts_out.data(),
                                     {batches, heads, rounds * length, value_depth});
  const tensor_view<Real, 3> lse(by_token.data(), {batches, heads, rounds * length});
  const tensor_view<Real, 3> sorted_lse(listed.data(), {order.sequences(), 1, how.chunk});
  const auto attend = [&](const auto&... masks_and_scores) {
    heed::attention<Backend>(gathered_view(x, order.queries(), heads),
                             gathered_view(tensor_view<const Real, 4>(keys), order.keys(), heads),
                             gathered_view(v, order.keys(), heads),
                             gathered_view(partial, order.written(), heads), lse_to{sorted_lse},
                             masks_and_scores..., modifiers...);
  };
  if (!how.duplicates) {
    attend(lsh_mask{&order}, lsh_score{&order});
  } else if (how.causal || !how.across_buckets) {
    attend(lsh_mask{&order}, lsh_self_score{&order});
  } else {
    attend(lsh_self_score{&order});
  }
  const index_t per_item = order.sequences() / (batches * heads);
  for (index_t s = 0; s < order.sequences(); ++s) {
    for (index_t i = 0; i < how.chunk; ++i) {
      lse(s / per_item / heads, s / per_item % heads, order.written()(s, 0, i)) =
          sorted_lse(s, 0, i);
    }
  }
  std::vector<part<Real>> parts;
  for (index_t r = 0; r < rounds; ++r) {
    const tensor_view<Real, 3> of_round(by_token.data() + r * length, {batches, heads, length},
                                        {heads * rounds * length, rounds * length, 1});
    parts.emplace_back(partial.slice(2, r * length, length), of_round);
  }
  merge(parts, out);
}

}  // namespace sparse
HEED_NAMESPACE_END
