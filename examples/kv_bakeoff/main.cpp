// Policies × budgets on a real model: what is lost, what is saved.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "../generate/progress.hpp"
#include "report.hpp"

int main(int argc, char** argv) {
  CLI::App app{"Compares policies of KV caches on a byte-level language model."};
  std::string folder, picture = "kv_bakeoff.svg";
  std::vector<std::string> policies = bakeoff::policy_names();
  std::vector<int> budgets = {10, 20, 50};
  int trials = 4, threads = 2;
  bakeoff::index length = 4096, piece = 64;
  app.add_option("--model", folder, "Folder of the model, with held_out.txt")->required();
  app.add_option("--policies", policies, "Policies to compare")
      ->check(CLI::IsMember(bakeoff::policy_names()));
  app.add_option("--budgets", budgets, "Tokens to keep, in percent of --length")
      ->check(CLI::Range(2, 100));
  app.add_option("--length", length, "Bytes of code to predict")->check(CLI::Range(512, 4096));
  app.add_option("--piece", piece, "Bytes between two evictions while reading")
      ->check(CLI::Range(32, 512));
  app.add_option("--trials", trials, "Texts with needles")->check(CLI::Range(1, 50));
  app.add_option("--threads", threads, "Threads")->check(CLI::Range(1, 256));
  app.add_option("--svg", picture, "Where the picture goes");
  CLI11_PARSE(app, argc, argv);

  try {
    for (const int percent : budgets) {
      if (length * percent / 100 <= bakeoff::recent_tokens) {
        throw std::runtime_error("a budget of " + std::to_string(percent) + " % of " +
                                 std::to_string(length) + " bytes leaves nothing beside the " +
                                 std::to_string(bakeoff::recent_tokens) +
                                 " newest tokens, which most policies keep");
      }
    }
    const auto weights = example::llama_weights::open(folder);
    const auto code = example::read_bytes(folder + "/held_out.txt");
    if (code.size() < 8192 + static_cast<std::size_t>(trials) * 3600) {
      throw std::runtime_error(folder + "/held_out.txt: too short for " + std::to_string(trials) +
                               " trials");
    }
    heed::thread_pool pool(threads);
    const int steps = (1 + trials) * static_cast<int>(1 + policies.size() * budgets.size());
    int done = 0;
    example::progress progress("kv_bakeoff");
    const auto step = [&] { progress(++done / static_cast<double>(steps)); };

    std::vector<bakeoff::result> results;
    const auto run = [&](const std::string& name, int percent) {
      bakeoff::result r;
      r.policy = name;
      r.percent = percent;
      r.budget = length * percent / 100;
      // Retrieval is made for one query at a time.
      const bakeoff::index at_once = name == "quest" ? 1 : piece;
      const auto make = [&](bakeoff::index budget, bakeoff::index context) {
        return bakeoff::model(
            weights, pool, context,
            bakeoff::evicting_attention(weights.config, pool, name, budget, context, at_once));
      };
      auto m = make(r.budget, length);
      bakeoff::measure_bits(m, example::token_span(code).first(static_cast<std::size_t>(length)),
                            at_once, r);
      step();
      auto recalling = make(4096 * percent / 100, 4096);
      bakeoff::measure_needles(recalling, code, at_once, trials, r, step);
      bakeoff::print(r);
      results.push_back(r);
    };
    bakeoff::print_header();
    run("full", 100);
    for (const std::string& name : policies) {
      for (const int percent : budgets) run(name, percent);
    }
    bakeoff::write_svg(picture, results);
    std::printf("\n%s shows bits per byte and recall over the budget.\n", picture.c_str());
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "kv_bakeoff: %s\n", error.what());
    return 1;
  }
}
