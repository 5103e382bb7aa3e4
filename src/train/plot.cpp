#include "train/plot.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/check.h"

namespace reft {
namespace {

constexpr double kWidth = 860, kHeight = 480;
constexpr double kLeft = 72, kRight = 24, kTop = 52, kBottom = 56;
constexpr size_t kMaxPoints = 2000;

std::vector<PlotPoint> finite(const std::vector<PlotPoint>& points) {
  std::vector<PlotPoint> out;
  for (const PlotPoint& p : points) {
    if (std::isfinite(p.value)) out.push_back(p);
  }
  return out;
}

// Means of as many neighbours as it takes.
std::vector<PlotPoint> thinned(const std::vector<PlotPoint>& points) {
  const size_t group = (points.size() + kMaxPoints - 1) / kMaxPoints;
  if (group <= 1) return points;
  std::vector<PlotPoint> out;
  for (size_t i = 0; i < points.size(); i += group) {
    const size_t end = std::min(i + group, points.size());
    double sum = 0;
    for (size_t j = i; j < end; ++j) sum += points[j].value;
    out.push_back({points[(i + end - 1) / 2].step, sum / static_cast<double>(end - i)});
  }
  return out;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    }
  }
  return out;
}

struct Range {
  double low, high;
};

// What the axes show: all steps, and all smoothed and evaluation losses with the bulk of the raw
// ones; a single early peak must not flatten the rest.
struct Frame {
  Range steps, loss;
  double x(double step) const {
    return kLeft + (step - steps.low) / (steps.high - steps.low) * (kWidth - kLeft - kRight);
  }
  double y(double value) const {
    const double at = std::clamp(value, loss.low, loss.high);
    return kHeight - kBottom -
           (at - loss.low) / (loss.high - loss.low) * (kHeight - kTop - kBottom);
  }
};

Frame frame_of(const std::vector<PlotPoint>& train, const std::vector<PlotPoint>& average,
               const std::vector<PlotPoint>& eval) {
  std::vector<double> values, steps;
  for (const PlotPoint& p : train) values.push_back(p.value);
  std::sort(values.begin(), values.end());
  if (values.size() > 100) values.resize(values.size() - values.size() / 100);
  for (const auto* line : {&average, &eval}) {
    for (const PlotPoint& p : *line) values.push_back(p.value);
  }
  for (const auto* line : {&train, &eval}) {
    for (const PlotPoint& p : *line) steps.push_back(static_cast<double>(p.step));
  }
  if (values.empty()) return {{0, 1}, {0, 1}};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const auto [first, last] = std::minmax_element(steps.begin(), steps.end());
  const double margin = std::max((*high - *low) * 0.05, std::abs(*high) * 1e-3 + 1e-9);
  Frame frame = {{*first, std::max(*last, *first + 1)}, {*low - margin, *high + margin}};
  if (*low >= 0) frame.loss.low = std::max(frame.loss.low, 0.0);
  return frame;
}

std::string path_of(const Frame& frame, const std::vector<PlotPoint>& points) {
  std::string out;
  for (const PlotPoint& p : points) {
    out += fmt::format("{}{:.1f} {:.1f}", out.empty() ? "M" : "L",
                       frame.x(static_cast<double>(p.step)), frame.y(p.value));
  }
  return out;
}

std::string axes(const Frame& frame) {
  std::string out;
  for (const double value : axis_ticks(frame.loss.low, frame.loss.high, 7)) {
    const double y = frame.y(value);
    out +=
        fmt::format("<line class=\"grid\" x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>\n",
                    kLeft, kWidth - kRight, y);
    out += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n", kLeft - 8,
                       y + 4, value);
  }
  for (const double step : axis_ticks(frame.steps.low, frame.steps.high, 9)) {
    if (step != std::floor(step)) continue;
    const double x = frame.x(step);
    out +=
        fmt::format("<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>\n",
                    x, kHeight - kBottom, kHeight - kBottom + 5);
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:g}</text>\n", x,
                       kHeight - kBottom + 20, step);
  }
  out += fmt::format("<path class=\"axis\" d=\"M{0} {1}V{2}H{3}\"/>\n", kLeft, kTop,
                     kHeight - kBottom, kWidth - kRight);
  out += fmt::format("<text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 14);
  out += fmt::format(
      "<text class=\"label\" transform=\"translate(20 {}) rotate(-90)\" "
      "text-anchor=\"middle\">loss</text>\n",
      (kTop + kHeight - kBottom) / 2);
  return out;
}

std::string legend(double x, const char* style, const std::string& text) {
  return fmt::format("<path class=\"{}\" d=\"M{} 38h22\"/>\n<text x=\"{}\" y=\"42\">{}</text>\n",
                     style, x, x + 28, text);
}

std::string last_value(const std::vector<PlotPoint>& points) {
  return points.empty() ? "" : fmt::format(" {:.4f}", points.back().value);
}

constexpr const char* kStyle = R"(<style>
text { font: 12px system-ui, sans-serif; fill: #444 }
.title { font-size: 15px; font-weight: 600; fill: #111 }
.label { font-size: 13px }
.axis { stroke: #888; fill: none }
.grid { stroke: #e6e6e6 }
.train { stroke: #9ec5e8; fill: none; stroke-width: 1 }
.smooth { stroke: #1f6fb4; fill: none; stroke-width: 2 }
.eval { stroke: #d9541e; fill: none; stroke-width: 2 }
.dot { fill: #d9541e }
</style>
)";

}  // namespace

std::vector<PlotPoint> smooth(const std::vector<PlotPoint>& points) {
  const double window = std::max(1.0, static_cast<double>(points.size()) / 50);
  const double weight = 2 / (window + 1);
  double average = 0, norm = 0;
  std::vector<PlotPoint> out;
  for (const PlotPoint& p : points) {
    average += weight * (p.value - average);
    norm += weight * (1 - norm);
    out.push_back({p.step, average / norm});
  }
  return out;
}

std::vector<double> axis_ticks(double low, double high, int count) {
  const double rough = (high - low) / std::max(count, 1);
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double distance = 10 * power;
  for (const double factor : {5, 2, 1}) {
    if (factor * power >= rough * (1 - 1e-9)) distance = factor * power;
  }
  std::vector<double> ticks;
  for (double i = std::ceil(low / distance); i * distance <= high * (1 + 1e-12); ++i) {
    ticks.push_back(i * distance);
  }
  return ticks;
}

std::string loss_plot_svg(const LossPlot& plot) {
  const std::vector<PlotPoint> train = finite(plot.train), eval = finite(plot.eval);
  const std::vector<PlotPoint> average = smooth(train);
  const Frame frame = frame_of(train, average, eval);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\">\n{2}<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
      "<text class=\"title\" x=\"{3}\" y=\"22\">{4}</text>\n",
      kWidth, kHeight, kStyle, kLeft, escaped(plot.title));
  out += axes(frame);
  out += fmt::format("<path class=\"train\" d=\"{}\"/>\n", path_of(frame, thinned(train)));
  out += fmt::format("<path class=\"smooth\" d=\"{}\"/>\n", path_of(frame, thinned(average)));
  out += legend(kLeft, "train", "training loss");
  out += legend(kLeft + 140, "smooth", "smoothed" + last_value(average));
  if (!eval.empty()) {
    const std::vector<PlotPoint> dots = thinned(eval);
    out += fmt::format("<path class=\"eval\" d=\"{}\"/>\n", path_of(frame, dots));
    for (const PlotPoint& p : dots) {
      out += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>\n",
                         frame.x(static_cast<double>(p.step)), frame.y(p.value));
    }
    out += legend(kLeft + 290, "eval", "evaluation loss" + last_value(eval));
  }
  return out + "</svg>\n";
}

}  // namespace reft
