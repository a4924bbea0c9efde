// Looks into every attention head of a small language model while it reads: each head's map as a
// picture, its entropy, its sink mass, its score as a retrieval head, and the rollout over layers.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <heed/analysis/entropy.hpp>
#include <heed/analysis/retrieval_head.hpp>
#include <heed/analysis/rollout.hpp>
#include <heed/analysis/sink_mass.hpp>
#include <heed/cache/contiguous.hpp>
#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>
#include <heed/observer/column_sums.hpp>
#include <heed/observer/key_weights.hpp>
#include <heed/observer/row_entropy.hpp>
#include <heed/observer/top_keys.hpp>
#include <heed/observer/weights.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "evaluate.hpp"
#include "picture.hpp"
#include "progress.hpp"
#include "transformer.hpp"

namespace {

using example::bytes;
using example::index;
using example::picture;

// What one layer's heads did with the newest tokens.
struct layer_record {
  std::vector<float> weights;       // [heads, tokens, keys]; where maps are wanted
  std::vector<float> entropy;       // [heads, tokens]
  std::vector<float> column_sums;   // [heads, keys]
  std::vector<std::int64_t> top;    // [heads, tokens]: the key with the largest weight
  std::vector<float> copied_share;  // [heads, tokens]: weight on the copied key
};

// Causal attention with a cache, that also keeps records of the last call.
class recording_attention {
 public:
  using operand = float;

  recording_attention(const example::llama_config& config, heed::thread_pool& pool, index context)
      : pool_(pool), records_(static_cast<std::size_t>(config.layers)) {
    for (index i = 0; i < config.layers; ++i) {
      caches_.emplace_back(1, config.key_heads, context, config.depth);
    }
  }
  void clear() {
    for (auto& cache : caches_) cache.clear();
  }

  bool keeps_maps = true;
  // Key whose token each query of the next call is about to copy; negative: none.
  std::vector<std::int64_t> copied;

  const layer_record& record(index layer) const {
    return records_[static_cast<std::size_t>(layer)];
  }

  template <class Q, class K, class V, class Out>
  void operator()(index layer, const Q& q, const K& k, const V& v, const Out& out) {
    auto& cache = caches_[static_cast<std::size_t>(layer)];
    cache.append(k, v);
    layer_record& r = records_[static_cast<std::size_t>(layer)];
    const index heads = q.extent(1), tokens = q.extent(2), keys = cache.size();
    copied.resize(static_cast<std::size_t>(tokens), -1);
    r.entropy.resize(static_cast<std::size_t>(heads * tokens));
    r.top.resize(static_cast<std::size_t>(heads * tokens));
    r.copied_share.resize(static_cast<std::size_t>(heads * tokens));
    r.column_sums.resize(static_cast<std::size_t>(heads * keys));
    const auto attend = [&](const auto&... more) {
      heed::attention(
          q, cache.keys(), cache.values(), out, heed::causal{}, heed::on{pool_},
          heed::row_entropy_to{heed::tensor_view<float, 3>(r.entropy.data(), {1, heads, tokens})},
          heed::column_sums_to{heed::tensor_view<float, 3>(r.column_sums.data(), {1, heads, keys})},
          heed::top_keys_to{
              heed::tensor_view<std::int64_t, 4>(r.top.data(), {1, heads, tokens, 1})},
          heed::key_weights_to{
              heed::tensor_view<const std::int64_t, 3>(copied.data(), {1, tokens, 1}),
              heed::tensor_view<float, 4>(r.copied_share.data(), {1, heads, tokens, 1})},
          more...);
    };
    if (keeps_maps) {
      r.weights.resize(static_cast<std::size_t>(heads * tokens * keys));
      attend(heed::weights_to{
          heed::tensor_view<float, 4>(r.weights.data(), {1, heads, tokens, keys})});
    } else {
      attend();
    }
  }

 private:
  heed::thread_pool& pool_;
  std::vector<heed::cache::contiguous<float>> caches_;
  std::vector<layer_record> records_;
};

using model_type = example::transformer<recording_attention>;

// One number per layer and head.
using head_table = std::vector<std::vector<float>>;
heed::tensor_view<float, 2> row_of(head_table& table, index layer) {
  auto& row = table[static_cast<std::size_t>(layer)];
  return {row.data(), {1, static_cast<index>(row.size())}};
}

// Weights of queries against keys; the square root shows small ones.
picture map_picture(const float* weights, index length) {
  picture result(static_cast<std::size_t>(length), static_cast<std::size_t>(length));
  for (index i = 0; i < length; ++i) {
    for (index j = 0; j <= i; ++j) {
      result.paint(static_cast<std::size_t>(j), static_cast<std::size_t>(i),
                   std::sqrt(static_cast<double>(weights[i * length + j])));
    }
  }
  return result;
}

// A text in which "needle_1 = <digits>" stands `distance` bytes before the place where it is asked
// for, and the position of the first digit.
struct recall_text {
  bytes prompt, answer;
  std::int64_t first_digit = 0;
};
recall_text recall_at(const bytes& filler, index distance, int number) {
  recall_text text;
  const std::string digits = std::to_string(48213 + 7919 * number);
  const std::string line = "\nneedle_1 = " + digits + "\n", question = "\nassert needle_1 == ";
  text.prompt = {0};
  text.prompt.insert(text.prompt.end(), line.begin(), line.end());
  text.first_digit = static_cast<std::int64_t>(text.prompt.size() - digits.size() - 1);
  const auto rest = std::max<index>(distance - static_cast<index>(question.size()) - 6, 0);
  text.prompt.insert(text.prompt.end(), filler.begin() + 1, filler.begin() + 1 + rest);
  text.prompt.insert(text.prompt.end(), question.begin(), question.end());
  text.answer.assign(digits.begin(), digits.end());
  return text;
}

struct options {
  std::filesystem::path model, text, out = "attention_lens";
  index bytes = 512;
  int threads = 1;
  bool check = false;
};

int run(const options& o) {
  heed::thread_pool pool(o.threads);
  const auto weights = example::llama_weights::open(o.model);
  const example::llama_config& config = weights.config;
  model_type model(weights, pool, config.context,
                   recording_attention(config, pool, config.context));
  recording_attention& attention = model.attention();
  const std::filesystem::path source = o.text.empty() ? o.model / "held_out.txt" : o.text;
  const bytes text = example::read_bytes(source, static_cast<std::size_t>(o.bytes));
  if (text.size() < 2) throw std::runtime_error(source.string() + ": has fewer than 2 bytes");
  const auto length = static_cast<index>(text.size());
  std::filesystem::create_directories(o.out);

  const std::vector<index> distances = {128, 512, 1024, 2048};
  const int steps = static_cast<int>(config.layers + 3 * std::ssize(distances));
  int done = 0;
  example::progress show("reading");
  const auto step = [&] { show(static_cast<double>(++done) / steps); };
  const auto table = [&] {
    return head_table(static_cast<std::size_t>(config.layers),
                      std::vector<float>(static_cast<std::size_t>(config.heads)));
  };

  // The maps, and what they are like.
  head_table entropy = table(), sinks = table();
  model.forward(text, example::logits::last);
  const index gap = 4;
  picture overview(static_cast<std::size_t>(config.heads * (length + gap) - gap),
                   static_cast<std::size_t>(config.layers * (length + gap) - gap));
  heed::analysis::rollout rollout(length);
  double worst_row = 0;
  for (index layer = 0; layer < config.layers; ++layer) {
    const layer_record& r = attention.record(layer);
    heed::analysis::head_entropy(
        heed::tensor_view<const float, 3>(r.entropy.data(), {1, config.heads, length}),
        row_of(entropy, layer));
    heed::analysis::sink_mass(
        heed::tensor_view<const float, 3>(r.column_sums.data(), {1, config.heads, length}),
        row_of(sinks, layer), 4);
    rollout.add_layer(
        heed::tensor_view<const float, 3>(r.weights.data(), {config.heads, length, length}));
    for (index head = 0; head < config.heads; ++head) {
      const float* map = r.weights.data() + head * length * length;
      for (index i = 0; i < length; ++i) {
        double sum = 0;
        for (index j = 0; j < length; ++j) sum += static_cast<double>(map[i * length + j]);
        worst_row = std::max(worst_row, std::abs(sum - 1));
      }
      const picture drawn = map_picture(map, length);
      drawn.save(o.out /
                 ("layer" + std::to_string(layer) + "_head" + std::to_string(head) + ".png"));
      overview.insert(drawn, static_cast<std::size_t>(head * (length + gap)),
                      static_cast<std::size_t>(layer * (length + gap)));
    }
    step();
  }
  overview.save(o.out / "overview.png");
  map_picture(rollout.result().data(), length).save(o.out / "rollout.png");

  // Retrieval heads: while the model writes the digits of a name that it has read far above, which
  // heads look at the digit that is copied?
  head_table score = table(), share = table();
  const bytes filler = example::read_bytes(o.model / "held_out.txt", 4096);
  int right = 0, digits = 0, trials = 0;
  for (const index distance : distances) {
    for (int number = 0; number < 3; ++number, ++trials) {
      const recall_text recall = recall_at(filler, distance, number);
      model.clear();
      attention.keeps_maps = false;
      attention.copied.assign(recall.prompt.size(), -1);
      attention.copied.back() = recall.first_digit;
      const example::matrix* rows = &model.forward(recall.prompt, example::logits::last);
      const auto queries = static_cast<index>(recall.answer.size());
      for (index digit = 0;; ++digit) {
        const std::uint8_t wanted = recall.answer[static_cast<std::size_t>(digit)];
        index likeliest = 0;
        rows->row(0).maxCoeff(&likeliest);
        right += likeliest == wanted ? 1 : 0;
        ++digits;
        for (index layer = 0; layer < config.layers; ++layer) {
          const layer_record& r = attention.record(layer);
          const auto tokens = static_cast<index>(r.top.size()) / config.heads;
          std::vector<float> of_heads(static_cast<std::size_t>(config.heads));
          const heed::tensor_view<float, 2> heads(of_heads.data(), {1, config.heads});
          const heed::tensor_view<const std::int64_t, 2> copied(attention.copied.data(),
                                                                {1, tokens});
          const auto add_to = [&](head_table& sum) {
            for (index h = 0; h < config.heads; ++h) row_of(sum, layer)(0, h) += heads(0, h);
          };
          heed::analysis::retrieval_score(
              heed::tensor_view<const std::int64_t, 4>(r.top.data(), {1, config.heads, tokens, 1}),
              copied, heads);
          add_to(score);
          heed::analysis::copied_share(heed::tensor_view<const float, 4>(
                                           r.copied_share.data(), {1, config.heads, tokens, 1}),
                                       copied, heads);
          add_to(share);
        }
        if (digit + 1 == queries) break;
        attention.copied.assign(1, recall.first_digit + digit + 1);
        rows = &model.forward(example::token_span(&wanted, 1), example::logits::last);
      }
      step();
    }
  }

  std::printf("%s: %td bytes read; pictures in %s\n\n", source.string().c_str(), length,
              o.out.string().c_str());
  std::printf(
      "layer head   entropy, nats   sink mass   retrieval score   weight on what is copied\n");
  float best = 0;
  for (index layer = 0; layer < config.layers; ++layer) {
    for (index head = 0; head < config.heads; ++head) {
      const auto of = [&](head_table& t) { return static_cast<double>(row_of(t, layer)(0, head)); };
      best = std::max(best, static_cast<float>(of(score) / digits));
      std::printf("%5td %4td %15.2f %11.3f %17.2f %26.3f\n", layer, head, of(entropy), of(sinks),
                  of(score) / digits, of(share) / digits);
    }
  }
  std::printf(
      "\nRetrieval: %d digits in %d texts with the name 128 to 2048 bytes above; the model writes "
      "%d of them right.\nEntropy of a head that looks everywhere alike would be about %.2f.\n",
      digits, trials, right, std::log(static_cast<double>(length)) - 1);
  if (o.check) {
    const bool good = worst_row < 1e-5 && right * 10 >= digits * 9 && best > 0.5f;
    std::printf("rows of weights sum to 1 within %.1e, best retrieval score %.2f: %s\n", worst_row,
                static_cast<double>(best), good ? "passed" : "failed");
    return good ? 0 : 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  const unsigned cores = std::thread::hardware_concurrency();
  o.threads = cores > 0 ? static_cast<int>(cores) : 1;
  CLI::App app("Shows what the attention heads of a small language model look at");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", o.model, "Folder with config.json and model.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--text", o.text, "File to read; the model's held_out.txt unless given")
      ->check(CLI::ExistingFile);
  app.add_option("--bytes", o.bytes, "Bytes of it to read, from its start: the size of the maps")
      ->check(CLI::Range(2, 2048));
  app.add_option("--out", o.out, "Folder for the pictures");
  app.add_option("--threads", o.threads, "Threads")->check(CLI::Range(1, 1024));
  app.add_flag("--check", o.check, "Exit with 1 when the numbers are not as they must be");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(o);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attention_lens: %s\n", error.what());
    return 1;
  }
}
