// cache::quantized<Code>: keys and values of the tokens so far as integer codes with a scale for
// every `channels` channels of each token (core/quantized.hpp).
//
//   x̂ = scale·code, |x̂ − x| ≤ scale / 2;  int8_t: scale = max |x| / 127, int4_pair: max |x| / 7
//
// Of a token's D channels stay D bytes (D / 2 for int4_pair) and 4·⌈D / channels⌉ of scales. What
// the contiguous cache promises holds here too: appending moves nothing, keep() evicts, policies
// score the tokens and subset() selects from them, both by their codes.
#pragma once

#include "../core/quantize.hpp"
#include "detail/ledger.hpp"
#include "detail/rows_memory.hpp"
#include "detail/store_shape.hpp"

HEED_NAMESPACE_BEGIN
namespace cache {

template <code Code = std::int8_t>
class quantized {
 public:
  // Room for `capacity` tokens of each of `batches` sequences. One scale per `channels` channels.
  quantized(index_t batches, index_t key_heads, index_t capacity, index_t depth,
            index_t value_depth, index_t channels = scale_groups::whole)
      : shape_(detail::store_shape{batches, key_heads, capacity, depth, value_depth}.checked(
            sizeof(float) + 1)),
        groups_{1, channels},
        ledger_(batches, key_heads) {
    if (channels < 1) {
      raise(message("cache: a scale for ") << channels << " channels, must be at least 1");
    }
    check_depth("depth", depth);
    check_depth("value depth", value_depth);
  }
  quantized(index_t batches, index_t key_heads, index_t capacity, index_t depth)
      : quantized(batches, key_heads, capacity, depth, depth) {}

  // Adds n tokens: k [B, Hkv, n, D], v [B, Hkv, n, Dv], every element a finite float.
  template <viewable K, viewable V>
  void append(const K& k, const V& v) {
    const auto new_keys = read_view_of(k).template lifted<4>();
    const auto new_values = read_view_of(v).template lifted<4>();
    const index_t count = shape_.check_append(new_keys, new_values, size());
    if (count == 0) return;
    check_finite("k", new_keys);
    check_finite("v", new_values);
    rows_.allocate(shape_.rows(), code_width(shape_.depth), scale_width(shape_.depth),
                   code_width(shape_.value_depth), scale_width(shape_.value_depth));
    for (index_t b = 0; b < shape_.batches; ++b) {
      for (index_t h = 0; h < shape_.key_heads; ++h) {
        const index_t row = shape_.row(b, h, ledger_.count(b, h));
        write(new_keys.slice(0, b, 1).slice(1, h, 1), rows_.template get<0>(),
              rows_.template get<1>(), row, shape_.depth);
        write(new_values.slice(0, b, 1).slice(1, h, 1), rows_.template get<2>(),
              rows_.template get<3>(), row, shape_.value_depth);
      }
    }
    ledger_.append(count);
  }

  quantized_view<Code, 4> keys() const {
    return view(rows_.template get<0>(), rows_.template get<1>(), shape_.depth);
  }
  quantized_view<Code, 4> values() const {
    return view(rows_.template get<2>(), rows_.template get<3>(), shape_.value_depth);
  }
  kept_view<true> kept() const { return ledger_.kept(); }

  index_t size() const { return ledger_.size(); }
  index_t seen() const { return ledger_.seen(); }
  index_t capacity() const { return shape_.capacity; }

  // Evicts all tokens that are not listed.
  void keep(const kept_tokens& tokens) {
    ledger_.keep(tokens, [this](index_t b, index_t h, index_t from, index_t to) {
      from = shape_.row(b, h, from), to = shape_.row(b, h, to);
      move(rows_.template get<0>(), code_width(shape_.depth), from, to);
      move(rows_.template get<1>(), scale_width(shape_.depth), from, to);
      move(rows_.template get<2>(), code_width(shape_.value_depth), from, to);
      move(rows_.template get<3>(), scale_width(shape_.value_depth), from, to);
    });
  }
  void truncate(index_t size) { ledger_.truncate(size); }
  void clear() { ledger_.clear(); }
  index_t bytes() const { return rows_.bytes() + ledger_.bytes(); }

 private:
  static void check_depth(const char* what, index_t depth) {
    if (depth % codes_per_element<Code> != 0) {
      raise(message("cache: ") << what << " " << depth
                               << " is odd, codes of four bits lie in pairs");
    }
  }
  template <class T>
  static void check_finite(const char* name, const tensor_view<const T, 4>& x) {
    for (index_t b = 0; b < x.extent(0); ++b) {
      for (index_t h = 0; h < x.extent(1); ++h) {
        for (index_t i = 0; i < x.extent(2); ++i) {
          for (index_t d = 0; d < x.extent(3); ++d) {
            const double value = widen<double>(x(b, h, i, d));
            if (!(value <= 3.4e38 && value >= -3.4e38)) {
              raise(message(name) << "[" << b << ", " << h << ", " << i << ", " << d
                                  << "] is not a finite float");
            }
          }
        }
      }
    }
  }
  template <class T>
  void write(const tensor_view<const T, 4>& x, Code* codes, float* scales, index_t row,
             index_t depth) const {
    const index_t width = code_width(depth), groups = scale_width(depth);
    quantize(x, tensor_view<Code, 4>(codes + row * width, {1, 1, x.extent(2), width}),
             tensor_view<float, 4>(scales + row * groups, {1, 1, x.extent(2), groups}), groups_);
  }
  template <class T>
  static void move(T* rows, index_t width, index_t from, index_t to) {
    detail::copy_row(rows + from * width, rows + to * width, width);
  }

  static index_t code_width(index_t depth) { return depth / codes_per_element<Code>; }
  index_t scale_width(index_t depth) const {
    return depth == 0 ? 0 : (depth - 1) / groups_.channels + 1;
  }
  quantized_view<Code, 4> view(const Code* codes, const float* scales, index_t depth) const {
    return {shape_.view(codes, size(), code_width(depth)),
            shape_.view(scales, size(), scale_width(depth)), groups_};
  }

  detail::store_shape shape_;
  scale_groups groups_;
  detail::ledger ledger_;
  detail::rows_memory<Code, float, Code, float> rows_;
};

}  // namespace cache
HEED_NAMESPACE_END
