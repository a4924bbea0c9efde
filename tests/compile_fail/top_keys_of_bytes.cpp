// expect: top_keys_to needs indices of 16 bits or more
#include <cstdint>
#include <heed/dense/attention.hpp>
#include <heed/observer/top_keys.hpp>

void call(heed::tensor_view<const float, 2> q, heed::tensor_view<const float, 2> k,
          heed::tensor_view<float, 2> out, heed::tensor_view<std::int8_t, 2> top) {
  heed::attention(q, heed::sources{heed::source{k, k}, heed::source{k, k}, heed::source{k, k}}, out,
                  heed::top_keys_to{top});
}
