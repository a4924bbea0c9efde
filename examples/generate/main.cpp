// Continues text with a small byte-level Llama model whose attention is heed's, and measures it:
// bits per byte of a text, agreement with stored double-precision results, speed.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <heed/version.hpp>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "evaluate.hpp"
#include "llama.hpp"
#include "progress.hpp"
#include "safetensors.hpp"

namespace {

using example::bytes;
using example::index;
using example::language_model;
using example::logits;
using example::matrix;
using example::progress;
using example::stopwatch;
using example::token_span;

struct options {
  std::filesystem::path model;
  std::string prompt, prompt_file;
  index length = 400;
  double temperature = 0;
  std::uint64_t seed = 0;
  int threads = 1;
  std::string backend = "native", type = "float";
  index context = 0;  // 0: the model's own
  std::string bits_per_byte;
  std::size_t bytes = 0;  // 0: all
  double expect = 0, tolerance = 0;
  bool has_expectation = false;
  bool check_golden = false, check_decode = false, demo = false;
};

// ---- generating ---------------------------------------------------------------------------------

// The next byte: the likeliest one, or drawn from softmax(logits / temperature).
class sampler {
 public:
  sampler(double temperature, std::uint64_t seed) : temperature_(temperature), random_(seed) {}

  template <class Row>
  std::uint8_t operator()(const Row& row) {
    index best = 0;
    const double largest = row.maxCoeff(&best);
    if (temperature_ == 0) return static_cast<std::uint8_t>(best);
    std::vector<double> sums;
    double sum = 0;
    for (index i = 0; i < row.size(); ++i) {
      sum += std::exp((static_cast<double>(row[i]) - largest) / temperature_);
      sums.push_back(sum);
    }
    // Not a distribution of the standard library, whose results differ between libraries.
    const double at = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
    std::size_t chosen = 0;
    while (chosen + 1 < sums.size() && sums[chosen] <= at) ++chosen;
    return static_cast<std::uint8_t>(chosen);
  }

 private:
  double temperature_;
  std::mt19937_64 random_;
};

// Time of some forward passes.
struct speed {
  double tokens = 0, seconds = 0, attention_seconds = 0;

  double per_second() const { return tokens / seconds; }
  double attention_share() const { return attention_seconds / seconds; }
};

// Measures the forward passes between its construction and the call.
class speedometer {
 public:
  explicit speedometer(const language_model& model)
      : model_(model), seconds_(model.seconds()), attention_seconds_(model.attention_seconds()) {}
  speed after(std::size_t tokens) const {
    return {static_cast<double>(tokens), model_.seconds() - seconds_,
            model_.attention_seconds() - attention_seconds_};
  }

 private:
  const language_model& model_;
  double seconds_, attention_seconds_;
};

struct generation {
  speed prefill, decode;
};

void check_fits(const language_model& model, std::size_t prompt, index length) {
  // The last byte is not fed back.
  if (static_cast<index>(prompt) + length > model.context() + 1) {
    throw std::runtime_error("a prompt of " + std::to_string(prompt) +
                             " bytes (with byte 0 before it) and " + std::to_string(length) +
                             " more do not fit into the context of " +
                             std::to_string(model.context()));
  }
}

// Prints the continuation byte by byte. Byte 0 begins a document, so it ends one here.
generation generate(language_model& model, token_span prompt, const options& o) {
  check_fits(model, prompt.size(), o.length);
  sampler choose(o.temperature, o.seed);
  model.clear();
  generation result;
  const speedometer prefill(model);
  const matrix* rows = &model.forward(prompt, logits::last);
  result.prefill = prefill.after(prompt.size());

  const speedometer decode(model);
  std::size_t steps = 0;
  for (index i = 0; i < o.length; ++i) {
    const std::uint8_t next = choose(rows->row(0));
    if (next == 0) break;
    std::putchar(next);
    std::fflush(stdout);
    if (i + 1 == o.length) break;
    rows = &model.forward(token_span(&next, 1), logits::last);
    ++steps;
  }
  std::putchar('\n');
  result.decode = decode.after(steps);
  return result;
}

// ---- modes --------------------------------------------------------------------------------------

int score(language_model& model, const options& o) {
  const bytes text = o.bytes > 0 ? example::read_bytes(o.bits_per_byte, o.bytes)
                                 : example::read_bytes(o.bits_per_byte);
  if (text.size() < o.bytes) {
    throw std::runtime_error(o.bits_per_byte + ": has " + std::to_string(text.size()) +
                             " bytes, fewer than the " + std::to_string(o.bytes) + " of --bytes");
  }
  progress show("bits per byte");
  const speedometer meter(model);
  const double bits = example::bits_per_byte(model, text, model.context(), std::ref(show));
  const speed s = meter.after(text.size());
  std::printf(
      "%.5f bits per byte over %zu bytes in windows of %td; %.0f bytes/s, %.0f %% of the "
      "time in attention\n",
      bits, text.size(), model.context(), s.per_second(), 100 * s.attention_share());
  if (o.has_expectation && !(std::abs(bits - o.expect) <= o.tolerance)) {
    std::printf("expected %.5f within %.5f: off by %.5f\n", o.expect, o.tolerance,
                std::abs(bits - o.expect));
    return 1;
  }
  return 0;
}

// How far 16-bit queries, keys and values may move a logit: twice what was measured.
double rounding_limit(const std::string& type) { return type == "bf16" ? 0.2 : 0.04; }

int check_golden(language_model& model, const options& o) {
  const auto golden = example::safetensors_file::open(o.model / "golden.safetensors");
  const example::golden_deviation worst = example::compare_with_golden(model, golden);
  const double limit = o.type == "float" ? 2e-3 : rounding_limit(o.type);
  const bool good = worst.log_probability <= limit && worst.logits <= limit;
  std::printf(
      "largest deviation from the double-precision run: %.2e of a log-probability, %.2e of "
      "a logit; limit %.0e: %s\n",
      worst.log_probability, worst.logits, limit, good ? "passed" : "failed");
  return good ? 0 : 1;
}

int check_decode(language_model& model, const options& o) {
  const std::size_t count = std::min<std::size_t>(static_cast<std::size_t>(model.context()), 1024);
  const bytes text = example::read_bytes(o.model / "held_out.txt", count);
  progress show("decode against prefill");
  const double worst =
      example::compare_decode_with_prefill(model, token_span(text), std::ref(show));
  // Products that differ in the last place may round to neighbouring 16-bit keys.
  const double limit = o.type == "float" ? 1e-4 : rounding_limit(o.type);
  const bool good = worst <= limit;
  std::printf(
      "largest difference of a logit between %zu steps of decode and one prefill: %.2e; "
      "limit %.0e: %s\n",
      text.size(), worst, limit, good ? "passed" : "failed");
  return good ? 0 : 1;
}

int continue_prompt(language_model& model, const options& o) {
  bytes prompt = {0};
  if (!o.prompt_file.empty()) {
    const bytes text = example::read_bytes(o.prompt_file);
    prompt.insert(prompt.end(), text.begin(), text.end());
  } else {
    prompt.insert(prompt.end(), o.prompt.begin(), o.prompt.end());
  }
  check_fits(model, prompt.size(), o.length);
  std::fwrite(prompt.data() + 1, 1, prompt.size() - 1, stdout);
  const generation g = generate(model, prompt, o);
  std::fprintf(stderr,
               "prefill %.0f bytes/s, decode %.0f bytes/s, %.0f %% of the time in attention\n",
               g.prefill.per_second(), g.decode.per_second(), 100 * g.decode.attention_share());
  return 0;
}

// Bits per byte that a double-precision run found, by window.
double stored_bits_per_byte(const std::filesystem::path& model, index window) {
  const std::filesystem::path path = model / "report.json";
  std::ifstream stream(path);
  try {
    return nlohmann::json::parse(stream)
        .at("bpb_first_131072_held_out_bytes_in_consecutive_windows")
        .at(std::to_string(window))
        .get<double>();
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

int demo(language_model& model, const options& o) {
  constexpr std::size_t whole = 131072;  // what the stored bits per byte are of
  constexpr double seconds_to_spend = 60;
  constexpr std::string_view prompt_end = "    def __sub__(x1, x2):\n";
  constexpr std::size_t prompt_size = 2000, shown_size = 500;

  const bytes held_out = example::read_bytes(o.model / "held_out.txt");
  if (held_out.size() < whole) {
    throw std::runtime_error("held_out.txt has " + std::to_string(held_out.size()) +
                             " bytes, fewer than the expected " + std::to_string(whole));
  }
  const std::string_view text(reinterpret_cast<const char*>(held_out.data()), held_out.size());
  std::size_t end = text.find(prompt_end);
  if (end == std::string_view::npos) throw std::runtime_error("held_out.txt lacks the prompt");
  end += prompt_end.size();
  const auto from_line_start = [&](std::size_t size) {
    return text.find('\n', end - std::min(end, size)) + 1;
  };
  const std::size_t begin = from_line_start(prompt_size), shown = from_line_start(shown_size);
  bytes prompt = {0};
  prompt.insert(prompt.end(), text.begin() + static_cast<std::ptrdiff_t>(begin),
                text.begin() + static_cast<std::ptrdiff_t>(end));

  std::printf("\nThe model has never seen this file. The last of the %zu bytes that it reads:\n\n",
              prompt.size() - 1);
  std::fwrite(text.data() + shown, 1, end - shown, stdout);
  std::printf("\nWhat it writes, always the likeliest byte:\n\n");
  options greedy = o;
  greedy.temperature = 0;
  const speed decode = generate(model, prompt, greedy).decode;

  // How much text there is time for.
  const stopwatch trial;
  example::log_probabilities(model, token_span(held_out).first(4096));
  const double all = 2 * trial.seconds() * static_cast<double>(whole) / 4096;
  std::size_t size = whole;
  while (size > 4096 && all * static_cast<double>(size) / whole > seconds_to_spend) size /= 2;

  std::printf("\n%-28s %10s %14s %15s %18s\n", "", "bytes/s", "in attention", "bits per byte",
              "in double, stored");
  for (const index window : {index{1024}, index{4096}}) {
    progress show("bits per byte, windows of " + std::to_string(window));
    const speedometer meter(model);
    const double bits =
        example::bits_per_byte(model, token_span(held_out).first(size), window, std::ref(show));
    const speed s = meter.after(size);
    std::printf("prefill, windows of %-8td %10.0f %12.0f %% %15.4f %18.4f\n", window,
                s.per_second(), 100 * s.attention_share(), bits,
                stored_bits_per_byte(o.model, window));
  }
  std::printf("decode behind %-14zu %10.0f %12.0f %%\n", prompt.size(), decode.per_second(),
              100 * decode.attention_share());
  if (size == whole) {
    std::printf("Bits per byte are of the %zu bytes that the stored values are of.\n", whole);
  } else {
    std::printf(
        "Bits per byte are of the first %zu bytes only, to save time; the stored values are "
        "of %zu, and differ.\n",
        size, whole);
  }
  return 0;
}

template <class Backend, class Operand>
int run(const options& o) {
  heed::thread_pool pool(o.threads);
  const example::llama_weights weights = example::llama_weights::open(o.model);
  const index context = o.context > 0 ? o.context : weights.config.context;
  example::llama<Backend, Operand> model(weights, pool, context);
  std::fprintf(
      stderr,
      "heed %d.%d.%d, backend %s on %s, %s operands, %d threads; %td parameters, context %td\n",
      HEED_VERSION_MAJOR, HEED_VERSION_MINOR, HEED_VERSION_PATCH,
      std::string(Backend::name).c_str(), HEED_STRING(HEED_ISA), o.type.c_str(), o.threads,
      weights.parameters(), context);
  if (o.demo) return demo(model, o);
  if (o.check_golden) return check_golden(model, o);
  if (o.check_decode) return check_decode(model, o);
  if (!o.bits_per_byte.empty()) return score(model, o);
  return continue_prompt(model, o);
}

// ---- backends and types by name -----------------------------------------------------------------

template <class... Backends>
struct backend_list {};
using known_backends = backend_list<heed::backend::scalar, heed::backend::vec,
                                    heed::backend::avx512, heed::backend::amx>;

template <class Backend>
int run_type(const options& o) {
  if (o.type == "bf16") return run<Backend, Eigen::bfloat16>(o);
  if (o.type == "half") return run<Backend, Eigen::half>(o);
  return run<Backend, float>(o);
}

template <class... Backends>
int run_backend(const options& o, backend_list<Backends...>) {
  if (o.backend == "native") return run_type<heed::backend::native>(o);
  std::string there = "native";
  int status = -1;
  const auto consider = [&]<class Backend>() {
    if constexpr (heed::backend::available<Backend>) {
      there += ", " + std::string(Backend::name);
      if (o.backend == Backend::name) status = run_type<Backend>(o);
    }
  };
  (consider.template operator()<Backends>(), ...);
  if (status < 0) {
    throw std::runtime_error("backend '" + o.backend +
                             "' is not in this program, which was compiled for " +
                             HEED_STRING(HEED_ISA) + "; it has " + there);
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  const unsigned cores = std::thread::hardware_concurrency();
  o.threads = cores > 0 ? static_cast<int>(cores) : 1;

  CLI::App app("Continues text with a byte-level Llama model whose attention is heed's");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", o.model, "Folder with config.json and model.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory);
  CLI::Option* prompt = app.add_option("--prompt", o.prompt, "Text to continue");
  app.add_option("--prompt-file", o.prompt_file, "File to continue")
      ->check(CLI::ExistingFile)
      ->excludes(prompt);
  app.add_option("--length", o.length, "Bytes to generate")->check(CLI::NonNegativeNumber);
  app.add_option("--temperature", o.temperature, "0: always the likeliest byte")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--seed", o.seed, "Seed of the random choice");
  app.add_option("--threads", o.threads, "Threads")->check(CLI::Range(1, 1024));
  app.add_option("--backend", o.backend, "scalar, vec, avx512, amx, or native: the best there is");
  app.add_option("--type", o.type, "Type of queries, keys, values and cache")
      ->check(CLI::IsMember({"float", "bf16", "half"}));
  app.add_option("--context", o.context,
                 "Bytes that the model can look back at; also the window "
                 "of --bits-per-byte; 0: as many as the model allows")
      ->check(CLI::NonNegativeNumber);
  CLI::Option* score = app.add_option("--bits-per-byte", o.bits_per_byte,
                                      "Measure how well the model predicts this file")
                           ->check(CLI::ExistingFile);
  app.add_option("--bytes", o.bytes, "Bytes of the file to predict, from its start; 0: all");
  CLI::Option* tolerance =
      app.add_option("--tolerance", o.tolerance, "Largest deviation from --expect")->needs(score);
  CLI::Option* expect =
      app.add_option("--expect", o.expect, "Bits per byte expected; exit 1 when it is off")
          ->needs(score)
          ->needs(tolerance);
  CLI::Option* golden = app.add_flag("--check-golden", o.check_golden,
                                     "Compare with the stored double-precision results");
  CLI::Option* decode =
      app.add_flag("--check-decode", o.check_decode,
                   "Compare decoding with the cache, byte by byte, with one prefill");
  CLI::Option* demo = app.add_flag("--demo", o.demo, "Generate, then measure quality and speed");
  golden->excludes(score, decode, demo);
  decode->excludes(score, demo);
  demo->excludes(score);
  CLI11_PARSE(app, argc, argv);
  o.has_expectation = expect->count() > 0;

  try {
    return run_backend(o, known_backends{});
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "generate: %s\n", error.what());
    return 1;
  }
}
