// A table of speeds for whoever tries the library: exact attention by its backends and by plain
// Eigen, on one core, in turns.
//
//   demo_table [--seconds N]      takes about N seconds, 45 unless told
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <heed/backend/select.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "support/ceilings.hpp"
#include "support/dense_case.hpp"
#include "support/timing.hpp"

namespace {

using namespace heed_bench;

// One line of the table.
struct entry {
  std::string shape;
  std::string unit;          // of the rates
  double work = 0;           // of one call, in 1e9 units
  std::string ceiling_name;  // what binds
  std::function<burst()> make_ceiling;
  struct contender {
    std::string_view name;
    std::function<void()> run;
  };
  // Sets up the operands, which only live while their line is measured.
  std::function<std::vector<contender>()> make_contenders;
};

// Whose ratio and share are shown. amx computes these lines as avx512 does: it differs in prefill
// of bfloat16 alone.
constexpr std::string_view shown =
    heed::backend::native::name == "amx" ? "avx512" : heed::backend::native::name;

template <class Visit>
void for_each_backend(Visit visit) {
  using namespace heed::backend;
  for_each_available<scalar, vec, avx512>(visit);
}

template <class T, mask_kind Mask, bool WithScalar>
std::vector<entry::contender> make_contenders(const dense_shape& shape) {
  const auto tensors = std::make_shared<const operands<T>>(make_operands<T>(shape));
  std::vector<entry::contender> list = {{"Eigen", [tensors] { attend_by_eigen(*tensors, Mask); }}};
  for_each_backend([&]<class Backend>(std::type_identity<Backend>) {
    if constexpr (WithScalar || !std::is_same_v<Backend, heed::backend::scalar>) {
      list.push_back({Backend::name, [tensors] { attend<Backend, Mask>(*tensors); }});
    }
  });
  return list;
}

std::string padded(index_t number, std::size_t width) {
  const std::string digits = std::to_string(number);
  return std::string(width - std::min(width, digits.size()), ' ') + digits;
}

template <mask_kind Mask, bool WithScalar = false>
entry prefill_entry(index_t length, index_t depth) {
  const dense_shape shape = prefill(8, length, depth);
  return {
      "prefill float  D " + padded(depth, 3) + "  S " + padded(length, 4) + "  " + name_of(Mask),
      "GFLOP/s",
      useful_flops(shape, Mask) * 1e-9,
      "multiply-add",
      fma_burst<float>,
      [shape] { return make_contenders<float, Mask, WithScalar>(shape); }};
}

template <class T>
entry decode_entry(index_t group, index_t keys, index_t depth) {
  const dense_shape shape = decode(group, keys, depth);
  const double bytes = key_value_bytes<T>(shape);
  std::string type = type_name<T>();
  type.resize(5, ' ');
  return {"decode  " + type + "  D " + padded(depth, 3) + "  S " + padded(keys, 4) + "  GQA " +
              std::to_string(group),
          "GB/s",
          bytes * 1e-9,
          "reading " + std::to_string(static_cast<index_t>(bytes / 1048576)) + " MiB",
          [bytes] { return read_ceiling(bytes); },
          [shape] { return make_contenders<T, mask_kind::full, false>(shape); }};
}

// Rates by contender, the ceiling last.
struct rates {
  std::vector<std::string_view> names;
  std::vector<double> values;

  double of(std::string_view name) const {
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) return values[i];
    }
    return 0;
  }
};

// About `seconds` in all. Turns share the machine's drift among the contenders, and the ceiling is
// one of them. The median call counts, in processor time, so that a busy machine does little harm.
rates measure(const entry& line, double seconds) {
  std::vector<entry::contender> contenders = line.make_contenders();
  const burst ceiling = line.make_ceiling();
  contenders.push_back({"ceiling", ceiling.run});
  std::vector<std::vector<double>> seconds_per_call(contenders.size());
  std::vector<std::function<void()>> bodies;
  double seconds_per_round = 0;
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    bodies.push_back([&, i] { seconds_per_call[i].push_back(cpu_seconds_of(contenders[i].run)); });
    seconds_per_round += seconds_of(bodies[i]);
  }

  // Three calls of each body go before the first turn, and a turn may take twice its time.
  const double left = std::max(seconds - 3 * seconds_per_round, 0.0);
  const auto rounds = static_cast<std::size_t>(std::clamp(left / seconds_per_round, 2.0, 12.0));
  measure_interleaved(bodies, rounds, left / 2 / static_cast<double>(bodies.size()));

  rates result;
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    const double work = i + 1 < contenders.size() ? line.work : ceiling.work * 1e-9;
    result.names.push_back(contenders[i].name);
    result.values.push_back(work / median(seconds_per_call[i]));
  }
  return result;
}

// What is being measured, in place where the terminal allows it.
void show_progress(const std::string& text) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) {
    std::fprintf(stderr, "\r%-70s", text.c_str());
    if (text.empty()) std::fputc('\r', stderr);
  } else if (!text.empty()) {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
}

void print_header(const std::vector<std::string_view>& backends) {
  std::printf("heed %d.%d.%d, compiled for %s; backends", HEED_VERSION_MAJOR, HEED_VERSION_MINOR,
              HEED_VERSION_PATCH, HEED_STRING(HEED_ISA));
  for (const std::string_view name : backends) std::printf(" %s", std::string(name).c_str());
  std::printf("; calls use %s\n", std::string(heed::backend::native::name).c_str());
  std::printf("ceilings of one core: float multiply-add %.0f GFLOP/s; exp %.1f Gexp/s; ",
              fma_gflops<float>(), exp_gexps());
  std::printf("reading L1 %.0f, L2 %.0f, L3 %.0f, DRAM %.0f GB/s\n\n", read_gbs(memory_level::l1),
              read_gbs(memory_level::l2), read_gbs(memory_level::l3), read_gbs(memory_level::dram));
}

void print_titles(const std::vector<std::string_view>& backends) {
  std::printf("%-38s %-8s %7s", "one core, 8 heads (decode: 32)", "unit", "Eigen");
  for (const std::string_view name : backends) std::printf(" %7s", std::string(name).c_str());
  std::printf("  %7s  %s\n", "x Eigen", "share of ceiling");
}

void print_line(const entry& line, const rates& measured,
                const std::vector<std::string_view>& backends) {
  const double eigen = measured.of("Eigen"), ours = measured.of(shown);
  std::printf("%-38s %-8s %7.1f", line.shape.c_str(), line.unit.c_str(), eigen);
  for (const std::string_view name : backends) {
    const double rate = measured.of(name);
    rate > 0 ? std::printf(" %7.1f", rate) : std::printf(" %7s", "-");
  }
  if (ours > 0) {
    std::printf("  %7.2f  %2.0f %% of %s\n", ours / eigen, 100 * ours / measured.of("ceiling"),
                line.ceiling_name.c_str());
  } else {
    std::printf("  %7s  -\n", "-");
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 45;
  if (argc == 3 && std::string_view(argv[1]) == "--seconds") {
    char* end = nullptr;
    seconds = std::strtod(argv[2], &end);
    if (end == argv[2] || *end != '\0' || !(seconds > 0)) argc = 0;
  }
  if (argc != 1 && argc != 3) {
    std::fprintf(stderr, "usage: demo_table [--seconds N]\n");
    return 2;
  }

  std::vector<std::string_view> backends;
  for_each_backend(
      [&]<class Backend>(std::type_identity<Backend>) { backends.push_back(Backend::name); });
  using enum mask_kind;
  const std::vector<entry> lines = {prefill_entry<full, true>(128, 64),
                                    prefill_entry<full>(1024, 64),
                                    prefill_entry<causal>(1024, 64),
                                    prefill_entry<full>(1024, 128),
                                    prefill_entry<causal>(1024, 128),
                                    decode_entry<float>(4, 4096, 128),
                                    decode_entry<Eigen::bfloat16>(4, 4096, 128)};

  show_progress("measuring the ceilings");
  const double seconds_for_ceilings = seconds_of([&] {
    fma_gflops<float>();
    exp_gexps();
    for (const auto level :
         {memory_level::l1, memory_level::l2, memory_level::l3, memory_level::dram}) {
      read_gbs(level);
    }
  });
  show_progress("");
  print_header(backends);
  print_titles(backends);
  const double seconds_per_line =
      std::max(seconds - seconds_for_ceilings, 0.0) / static_cast<double>(lines.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    show_progress("measuring " + std::to_string(i + 1) + " of " + std::to_string(lines.size()) +
                  ": " + lines[i].shape);
    const rates measured = measure(lines[i], seconds_per_line);
    show_progress("");
    print_line(lines[i], measured, backends);
  }
  std::printf(
      "\nMedian calls. GFLOP/s: useful ones, causal counts half. GB/s: K and V, once per KV head.\n"
      "x Eigen and the share are those of %s.\n",
      std::string(shown).c_str());
  return 0;
}
