// Pictures of attention maps, as PNG files.
#pragma once

#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace example {

// RGB pixels, row by row.
class picture {
 public:
  picture(std::size_t width, std::size_t height)
      : width_(width), height_(height), pixels_(3 * width * height, 255) {}

  std::size_t width() const { return width_; }
  std::size_t height() const { return height_; }

  // Paints a value from 0 to 1: white, over blue, to black.
  void paint(std::size_t x, std::size_t y, double value) {
    static constexpr double stops[4][3] = {
        {255, 255, 255}, {120, 170, 230}, {30, 60, 140}, {10, 10, 30}};
    const double at = 3 * std::clamp(value, 0.0, 1.0);
    const int stop = std::min(static_cast<int>(at), 2);
    for (int channel = 0; channel < 3; ++channel) {
      const double low = stops[stop][channel], high = stops[stop + 1][channel];
      pixels_[3 * (y * width_ + x) + static_cast<std::size_t>(channel)] =
          static_cast<std::uint8_t>(std::lround(low + (at - stop) * (high - low)));
    }
  }

  // The other picture's pixels, its upper left corner at x, y.
  void insert(const picture& other, std::size_t x, std::size_t y) {
    for (std::size_t row = 0; row < other.height_; ++row) {
      std::copy_n(other.pixels_.begin() + static_cast<std::ptrdiff_t>(3 * row * other.width_),
                  3 * other.width_,
                  pixels_.begin() + static_cast<std::ptrdiff_t>(3 * ((y + row) * width_ + x)));
    }
  }

  void save(const std::filesystem::path& path) const {
    png_image image = {};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width_);
    image.height = static_cast<png_uint_32>(height_);
    image.format = PNG_FORMAT_RGB;
    if (png_image_write_to_file(&image, path.c_str(), 0, pixels_.data(), 0, nullptr) == 0) {
      throw std::runtime_error(path.string() + ": " + image.message);
    }
  }

 private:
  std::size_t width_, height_;
  std::vector<std::uint8_t> pixels_;
};

}  // namespace example
