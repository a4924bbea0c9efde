// expect: terms such as relative embeddings need queries and keys at their own places
#include <heed/cache/attention.hpp>
#include <heed/cache/contiguous.hpp>
#include <heed/score/shaw.hpp>

void call(heed::tensor_view<const float, 4> q, const heed::cache::contiguous<float>& store,
          heed::tensor_view<const float, 2> table, heed::tensor_view<float, 4> out) {
  heed::attention(q, store, out, heed::shaw{table, 4});
}
