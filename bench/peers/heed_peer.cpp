// Ours, in the protocol of peer.hpp, with two more kinds of lines:
//
//   # flags TEXT           what it was compiled for
//   # ceiling CASE RATE    what the machine can do at most, in 1e9 operations or bytes per second
#include <cstdio>
#include <functional>
#include <heed/core/thread_pool.hpp>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <memory>
#include <string>
#include <type_traits>

#include "peer.hpp"
#include "support/dense_case.hpp"

namespace {

using namespace heed_peers;
using heed_bench::burst;

// What binds the case: multiply-adds, or reading K and V. Empty where no ceiling is measured.
template <class T>
burst ceiling_of(const attention_case& c, int threads) {
  if (c.queries == 1) {
    // How reading grows with the threads is the machine's secret.
    if (threads > 1) return {};
    const double bytes = 2.0 * static_cast<double>(c.key_size()) * sizeof(T);
    return heed_bench::read_ceiling(bytes);
  }
  if (!std::is_same_v<T, float>) {
    if (burst matrix = heed_bench::matrix_burst(heed_bench::bf16, heed_bench::memory_level::l2)) {
      return matrix;
    }
    if (burst pairs = heed_bench::vector_burst(heed_bench::bf16)) return pairs;
  }
  return heed_bench::fma_burst<float>();
}

void print_ceiling(const std::string& name, const burst& ceiling, int threads) {
  if (!ceiling) return;
  std::printf("# ceiling %s %.9g\n", name.c_str(), threads * heed_bench::remeasure(ceiling));
}

template <class T, class... Options>
void attend(const operands<T>& tensors, const Options&... options) {
  const attention_case& c = tensors.shape;
  const heed::tensor_view<const T, 4> q(tensors.q.get(),
                                        {c.batch, c.query_heads, c.queries, c.depth});
  const heed::tensor_view<const T, 4> k(tensors.k.get(), {c.batch, c.kv_heads, c.keys, c.depth});
  const heed::tensor_view<const T, 4> v(tensors.v.get(), {c.batch, c.kv_heads, c.keys, c.depth});
  const heed::tensor_view<T, 4> out(tensors.out.get(),
                                    {c.batch, c.query_heads, c.queries, c.depth});
  c.causal ? heed::attention(q, k, v, out, heed::causal{}, options...)
           : heed::attention(q, k, v, out, options...);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string library =
      std::string("heed ") + HEED_STRING(HEED_VERSION_MAJOR) + "." +
      HEED_STRING(HEED_VERSION_MINOR) + "." + HEED_STRING(HEED_VERSION_PATCH) + " (" +
      std::string(heed::backend::native::name) + ")\n# flags " + HEED_PEER_FLAGS;
  return run_peer(argc, argv, library, [](const auto& tensors, int threads) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tensors.q.get())>>;
    print_ceiling(tensors.shape.name, ceiling_of<T>(tensors.shape, threads), threads);
    if (threads == 1) return std::function<void()>([&tensors] { attend(tensors); });
    const auto pool = std::make_shared<heed::thread_pool>(threads);
    return std::function<void()>([&tensors, pool] { attend(tensors, heed::on{*pool}); });
  });
}
