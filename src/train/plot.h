// The loss plot: an SVG of a fixed size, drawn without any library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reft {

struct PlotPoint {
  int64_t step;
  double value;
};

struct LossPlot {
  std::string title;
  std::vector<PlotPoint> train;  // by rising step; values that are not finite are left out
  std::vector<PlotPoint> eval;   // may be empty
};

// Exponential moving average with weight 2 / (w + 1) on the newest, w a fiftieth of the points,
// corrected for its start at the first value.
std::vector<PlotPoint> smooth(const std::vector<PlotPoint>& points);

// Numbers at which an axis from `low` to `high` is marked: multiples of 1, 2 or 5 times a power of
// ten, `count` or somewhat fewer.
std::vector<double> axis_ticks(double low, double high, int count);

// Steps across, loss up; training loss pale with its smoothed curve, evaluation loss with dots. At
// most about two thousand points are drawn per line: means of neighbours.
std::string loss_plot_svg(const LossPlot& plot);

}  // namespace reft
