// Attention with relative position representations of keys and values:
//
//   w_ij  = softmax_j(scale · q_i · (k_j + a_h[clamp(j − i, −R, R) + R]))
//   out_i = Σ_j w_ij · (v_j + c_h[clamp(j − i, −R, R) + R])
//
//   key_table    a [Hq|1, 2R+1, D], or [2R+1, D] for all heads
//   value_table  c [Hq|1, 2R+1, Dv], or [2R+1, Dv]
//
// on the axis of the keys, the last query at the last key. The weights of a row are summed by
// distance, and the sums multiplied with c: 2R + 1 numbers a row, whatever the number of keys.
// Operands and modifiers are those of heed::attention, of one set of keys. Without the value side,
// attention() with heed::shaw does, and keeps no rows.
//
// Shaw, Uszkoreit and Vaswani, "Self-Attention with Relative Position Representations", NAACL 2018.
#pragma once

#include "../observer/distance_sums.hpp"
#include "../score/shaw.hpp"
#include "attention.hpp"

HEED_NAMESPACE_BEGIN

template <class Backend = backend::native, viewable Q, readable K, readable V, viewable KeyTable,
          viewable ValueTable, viewable Out, class... Modifiers>
void shaw_attention(const Q& q, const K& k, const V& v, const KeyTable& key_table,
                    const ValueTable& value_table, index_t radius, Out&& out,
                    const Modifiers&... modifiers) {
  const auto result = output_view_of(out).template lifted<4>();
  const auto table = view_of(value_table).template lifted<3>();
  const heed::shaw keys(view_of(key_table), radius);
  using out_type = typename decltype(result)::value_type;
  using Real = accumulator<out_type, typename decltype(table)::value_type,
                           typename decltype(view_of(q))::value_type,
                           typename decltype(read_view_of(k))::value_type,
                           typename decltype(read_view_of(v))::value_type>;
  const index_t batches = result.extent(0), heads = result.extent(1), length = result.extent(2);
  const index_t depth = result.extent(3), entries = 2 * radius + 1;
  if (table.extent(0) != 1) {
    detail::require_equal("value_table", "head count", table.extent(0), "out", heads);
  }
  if (table.extent(1) != entries) {
    raise(message("value_table: ")
          << table.extent(1) << " distances, radius " << radius << " needs 2·" << radius << " + 1");
  }
  detail::require_equal("value_table", "depth", table.extent(2), "out", depth);
  // The call below writes to scratch memory, so that what the output may not share is checked here.
  const detail::operand output = detail::erase("out", result);
  detail::check_operand(output);
  detail::check_distinct_rows(output);
  detail::check_disjoint(output, detail::erase("q", view_of(q).template lifted<4>()));
  const auto check_apart = [&](const detail::operand& in) { detail::check_disjoint(output, in); };
  detail::for_each_array("k", read_view_of(k).template lifted<4>(), check_apart);
  detail::for_each_array("v", read_view_of(v).template lifted<4>(), check_apart);

  const scratch* named = detail::find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  workspace& memory = named != nullptr ? named->memory : memory_of_thread.get();
  const index_t rows = batches * heads * length;
  Real *mixed = nullptr, *summed = nullptr;
  const auto lay_out = [&](detail::bump& from) {
    mixed = from.take<Real>(rows * depth);
    summed = from.take<Real>(rows * entries);
  };
  detail::bump counted;
  lay_out(counted);
  detail::bump taken(memory.reserve(counted.bytes()));
  lay_out(taken);
  const scratch inner(memory.inner());
  const tensor_view<Real, 4> values(mixed, {batches, heads, length, depth});
  const tensor_view<Real, 4> sums(summed, {batches, heads, length, entries});
  attention<Backend>(view_of(q).template lifted<4>(), read_view_of(k).template lifted<4>(),
                     read_view_of(v).template lifted<4>(), values, inner, modifiers..., keys,
                     distance_sums_to{sums});
  for (index_t b = 0; b < batches; ++b) {
    for (index_t h = 0; h < heads; ++h) {
      for (index_t i = 0; i < length; ++i) {
        Real* row = values.row(b, h, i);
        for (index_t t = 0; t < entries; ++t) {
          const Real sum = sums(b, h, i, t);
          if (sum == 0) continue;  // a distance that the query does not see
          const auto* entry = table.row(table.extent(0) == 1 ? 0 : h, t);
          for (index_t d = 0; d < depth; ++d) row[d] += sum * widen<Real>(entry[d]);
        }
        for (index_t d = 0; d < depth; ++d) result(b, h, i, d) = narrow<out_type>(row[d]);
      }
    }
  }
}

HEED_NAMESPACE_END
