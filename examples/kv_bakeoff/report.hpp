// The results as a table on stdout and as a picture.
#pragma once

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "measure.hpp"

namespace bakeoff {

inline void print_header() {
  std::printf("%-14s %6s %7s %9s ", "policy", "budget", "tokens", "bits/byte");
  for (const index d : needle_distances) std::printf(" @%-5td", static_cast<std::ptrdiff_t>(d));
  std::printf("%9s %8s %9s\n", "tokens/s", "attn us", "KiB held");
}
inline void print(const result& r) {
  std::printf("%-14s %4d %% %7td %9.4f ", r.policy.c_str(), r.percent,
              static_cast<std::ptrdiff_t>(r.budget), r.bits_per_byte);
  for (const double share : r.recalled) std::printf(" %3.0f %% ", 100 * share);
  std::printf("%9.0f %8.0f %9.0f\n", r.tokens_per_second, r.attention_microseconds,
              static_cast<double>(r.bytes) / 1024);
  std::fflush(stdout);
}

// Two panels over the budget: bits per byte, and the share of all digits that were recalled.
inline void write_svg(const std::string& path, const std::vector<result>& results) {
  std::ofstream svg(path);
  if (!svg) throw std::runtime_error(path + ": cannot be opened for writing");
  static const char* const colors[] = {"#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3",
                                       "#17a2a2", "#8c564b", "#555555", "#b0206a"};
  const auto recalled = [](const result& r) {
    double sum = 0;
    for (const double share : r.recalled) sum += share;
    return sum / static_cast<double>(r.recalled.size());
  };
  double least = results.front().bits_per_byte, most = least;
  for (const result& r : results) {
    least = std::min(least, r.bits_per_byte), most = std::max(most, r.bits_per_byte);
  }
  least -= 0.05 * (most - least) + 0.01, most += 0.05 * (most - least) + 0.01;
  constexpr int width = 300, height = 260, top = 50, left[] = {60, 440};
  const auto x = [&](int panel, int percent) { return left[panel] + percent * width / 60.0; };
  const auto y = [&](int panel, double value) {
    const double share = panel == 0 ? (value - least) / (most - least) : value;
    return top + height * (1 - share);
  };
  svg << "<svg xmlns='http://www.w3.org/2000/svg' width='920' height='370' "
         "font-family='sans-serif' font-size='12'>\n<rect width='920' height='370' "
         "fill='white'/>\n";
  const char* const titles[] = {"bits per byte (lower is better)",
                                "digits recalled (higher is better)"};
  char label[32];
  for (int panel = 0; panel < 2; ++panel) {
    svg << "<text x='" << left[panel] << "' y='30' font-size='14'>" << titles[panel] << "</text>\n"
        << "<rect x='" << left[panel] << "' y='" << top << "' width='" << width << "' height='"
        << height << "' fill='none' stroke='#999'/>\n";
    for (const int percent : {10, 20, 50}) {
      svg << "<text x='" << x(panel, percent) << "' y='" << top + height + 18
          << "' text-anchor='middle'>" << percent << " %</text>\n";
    }
    for (int tick = 0; tick <= 4; ++tick) {
      const double value = panel == 0 ? least + (most - least) * tick / 4 : tick / 4.0;
      std::snprintf(label, sizeof(label), panel == 0 ? "%.2f" : "%.0f %%",
                    panel == 0 ? value : 100 * value);
      svg << "<text x='" << left[panel] - 6 << "' y='" << y(panel, value) + 4
          << "' text-anchor='end'>" << label << "</text>\n";
    }
    const result& full = results.front();  // everything is kept
    const double level = y(panel, panel == 0 ? full.bits_per_byte : recalled(full));
    svg << "<line x1='" << left[panel] << "' x2='" << left[panel] + width << "' y1='" << level
        << "' y2='" << level << "' stroke='black' stroke-dasharray='4 3'/>\n";
    std::size_t color = 0;
    for (const std::string& name : policy_names()) {
      svg << "<polyline fill='none' stroke-width='2' stroke='" << colors[color] << "' points='";
      for (const result& r : results) {
        if (r.policy != name) continue;
        svg << x(panel, r.percent) << "," << y(panel, panel == 0 ? r.bits_per_byte : recalled(r))
            << " ";
      }
      svg << "'/>\n";
      if (panel == 1) {
        const double at = top + 12 + 20.0 * static_cast<double>(color);
        svg << "<line x1='760' x2='785' y1='" << at << "' y2='" << at
            << "' stroke-width='2' stroke='" << colors[color] << "'/><text x='792' y='" << at + 4
            << "'>" << name << "</text>\n";
      }
      ++color;
    }
  }
  const double at = top + 12 + 20.0 * static_cast<double>(policy_names().size());
  svg << "<line x1='760' x2='785' y1='" << at << "' y2='" << at
      << "' stroke='black' stroke-dasharray='4 3'/><text x='792' y='" << at + 4
      << "'>full cache</text>\n<text x='" << left[0]
      << "' y='355'>budget: tokens kept (quest: read), "
      << "of 4096</text>\n</svg>\n";
}

}  // namespace bakeoff
