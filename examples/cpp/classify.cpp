// Classifies a PGM or PPM image with an exported network through ONNX Runtime's C++ interface.
// exports/README.md says how to build it.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Image {
  int width, height, channels;
  std::vector<unsigned char> pixels;  // rows of pixels of channels
};

Image read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int width = 0, height = 0, largest = 0;
  file >> kind >> width >> height >> largest;  // comments in the header are not understood
  file.get();
  if (!file || (kind != "P5" && kind != "P6") || largest != 255)
    throw std::runtime_error(path + " is no binary PGM or PPM file of 8 bits");
  Image image{width, height, kind == "P5" ? 1 : 3, {}};
  image.pixels.resize(size_t(width) * height * image.channels);
  file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size());
  if (!file) throw std::runtime_error(path + " is truncated");
  return image;
}

// One line to `count` values: the antialiased bilinear filter that the network was trained with.
struct Taps {
  int first;
  std::vector<double> weights;
};

std::vector<Taps> taps(int size, double begin, double length, int count) {
  const double scale = length / count, support = std::max(scale, 1.0);
  std::vector<Taps> all;
  for (int i = 0; i < count; ++i) {
    const double centre = begin + (i + 0.5) * scale;
    const int first = std::max(0, int(centre - support + 0.5));
    const int end = std::min(size, int(centre + support + 0.5));
    std::vector<double> weights;
    for (int at = first; at < end; ++at)
      weights.push_back(std::max(0.0, 1 - std::abs((at - centre + 0.5) / support)));
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (double& weight : weights) weight /= sum;
    all.push_back({first, weights});
  }
  return all;
}

// Height and width of the network's input: 28, or "96x160".
std::pair<int, int> size(const nlohmann::json& preprocessing) {
  const auto& resolution = preprocessing["resolution"];
  if (resolution.is_number()) return {resolution, resolution};
  const std::string text = resolution;
  return {std::stoi(text), std::stoi(text.substr(text.find('x') + 1))};
}

// From an image to the network's input, as the manifest says: channels, rows, columns.
std::vector<float> prepare(const Image& image, const nlohmann::json& preprocessing) {
  const auto [rows, columns] = size(preprocessing);
  const int channels = preprocessing["channels"];
  const double h = image.height, w = image.width, crop = preprocessing["crop"];
  const double tall = std::min(h, w * rows / columns) * crop;
  const double wide = std::min(w, h * columns / rows) * crop;
  const auto across = taps(image.width, (image.width - wide) / 2, wide, columns);
  const auto down = taps(image.height, (image.height - tall) / 2, tall, rows);
  std::vector<float> input;
  for (int c = 0; c < channels; ++c) {
    const double mean = preprocessing["mean"][c], deviation = preprocessing["std"][c];
    const auto value = [&](int x, int y) {
      const unsigned char* p = &image.pixels[(size_t(y) * image.width + x) * image.channels];
      if (image.channels == 1) return int(p[0]);
      return channels == 1 ? (19595 * p[0] + 38470 * p[1] + 7471 * p[2] + 32768) >> 16 : int(p[c]);
    };
    std::vector<double> narrow(size_t(columns) * image.height);
    for (int y = 0; y < image.height; ++y)
      for (int x = 0; x < columns; ++x) {
        double sum = 0;
        for (size_t i = 0; i < across[x].weights.size(); ++i)
          sum += across[x].weights[i] * value(across[x].first + int(i), y);
        narrow[size_t(y) * columns + x] = std::round(sum);
      }
    for (int y = 0; y < rows; ++y)
      for (int x = 0; x < columns; ++x) {
        double sum = 0;
        for (size_t i = 0; i < down[y].weights.size(); ++i)
          sum += down[y].weights[i] * narrow[(down[y].first + i) * columns + x];
        input.push_back(float((std::round(sum) / 255 - mean) / deviation));
      }
  }
  return input;
}

int main(int count, char** arguments) try {
  if (count < 2) throw std::runtime_error("usage: classify IMAGE.pgm [EXPORT]");
  const std::string folder = count > 2 ? arguments[2] : "exports/fashion-mnist";
  const auto manifest = nlohmann::json::parse(std::ifstream(folder + "/manifest.json"));
  const auto& preprocessing = manifest["preprocessing"];
  std::vector<float> input = prepare(read(arguments[1]), preprocessing);

  Ort::Env env;
  Ort::Session session(env, (folder + "/model.onnx").c_str(), Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const auto output_name = session.GetOutputNameAllocated(0, allocator);
  const char* inputs[] = {input_name.get()};
  const char* outputs[] = {output_name.get()};
  const auto [rows, columns] = size(preprocessing);
  const std::array<int64_t, 4> shape{1, preprocessing["channels"].get<int64_t>(), rows, columns};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto tensor = Ort::Value::CreateTensor<float>(
      memory, input.data(), input.size(), shape.data(), shape.size());
  const auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);

  const float* logits = results[0].GetTensorData<float>();
  const size_t num_classes = manifest["classes"].size();
  const float largest = *std::max_element(logits, logits + num_classes);
  std::vector<double> scores;
  for (size_t i = 0; i < num_classes; ++i) scores.push_back(std::exp(logits[i] - largest));
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  std::vector<size_t> order(num_classes);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  for (size_t i = 0; i < std::min<size_t>(3, num_classes); ++i)
    std::printf("%.4f  %s\n", scores[order[i]] / sum,
                manifest["classes"][order[i]].get<std::string>().c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
