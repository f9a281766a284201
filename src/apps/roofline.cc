#include "apps/roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibble::apps {
namespace {

using kernels::LinearMeasurement;

constexpr int kColumns = 3;
constexpr double kChartWidth = 300;
constexpr double kChartHeight = 210;
constexpr double kLeft = 48, kRight = 12, kTop = 30, kBottom = 34;  // within a chart
constexpr double kHeader = 46;
constexpr const char* kColours[] = {"#1f77b4", "#76b900", "#d9580d", "#8a5cc2"};

struct Chart {
  std::string kernel;
  std::vector<const LinearMeasurement*> points;
};

std::vector<Chart> ChartsOf(const kernels::LinearBenchReport& report) {
  std::vector<Chart> charts;
  for (const LinearMeasurement& m : report.measurements) {
    auto it = std::find_if(charts.begin(), charts.end(),
                           [&](const Chart& chart) { return chart.kernel == m.kernel; });
    if (it == charts.end()) it = charts.insert(charts.end(), {.kernel = m.kernel, .points = {}});
    it->points.push_back(&m);
  }
  return charts;
}

double OpsPerByte(const LinearMeasurement& m) { return m.ops_per_second / m.bytes_per_second; }

// From values to places: decades that hold all points and roofs.
class Axes {
 public:
  explicit Axes(const Chart& chart) {
    for (const LinearMeasurement* m : chart.points) {
      Include(OpsPerByte(*m), x_low_, x_high_);
      Include(m->ops_per_second / 1e9, y_low_, y_high_);
      if (m->peak > 0) Include(m->peak / 1e9, y_low_, y_high_);
    }
  }
  double x(double value) const {
    return kLeft + Share(value, x_low_, x_high_) * (kChartWidth - kLeft - kRight);
  }
  double y(double value) const {
    return kChartHeight - kBottom - Share(value, y_low_, y_high_) * (kChartHeight - kTop - kBottom);
  }
  int x_low() const { return x_low_; }
  int x_high() const { return x_high_; }
  int y_low() const { return y_low_; }
  int y_high() const { return y_high_; }

 private:
  static void Include(double value, int& low, int& high) {
    low = std::min(low, static_cast<int>(std::floor(std::log10(value))));
    high = std::max(high, static_cast<int>(std::ceil(std::log10(value))));
  }
  static double Share(double value, int low, int high) {
    return (std::log10(value) - low) / std::max(1, high - low);
  }

  int x_low_ = 99, x_high_ = -99;  // powers of ten
  int y_low_ = 99, y_high_ = -99;
};

std::string Text(double x, double y, std::string_view anchor, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     text);
}

std::string Grid(const Axes& axes) {
  std::string svg;
  const double left = kLeft, right = kChartWidth - kRight;
  const double top = kTop, bottom = kChartHeight - kBottom;
  for (int decade = axes.x_low(); decade <= axes.x_high(); ++decade) {
    const double x = axes.x(std::pow(10, decade));
    svg += fmt::format("<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#ddd\"/>\n", x, top, bottom);
    svg += Text(x, bottom + 14, "middle", fmt::format("{:g}", std::pow(10, decade)));
  }
  for (int decade = axes.y_low(); decade <= axes.y_high(); ++decade) {
    const double y = axes.y(std::pow(10, decade));
    svg += fmt::format("<path d=\"M{0} {1:.1f}H{2}\" stroke=\"#ddd\"/>\n", left, y, right);
    svg += Text(left - 5, y + 4, "end", fmt::format("{:g}", std::pow(10, decade)));
  }
  return svg + Text((left + right) / 2, bottom + 28, "middle", "operations per byte of weight");
}

// The bandwidth of the streamed weight up to where it meets the peak.
std::string Roof(const Axes& axes, const LinearMeasurement& m, std::string_view colour) {
  const double peak = m.peak / 1e9;
  const double read = m.read / 1e9;
  const double low = std::max(std::pow(10, axes.x_low()), std::pow(10, axes.y_low()) / read);
  const double high = std::pow(10, axes.x_high());
  const double ridge = peak > 0 ? std::clamp(peak / read, low, high) : high;
  std::string path = fmt::format("M{:.1f} {:.1f}L{:.1f} {:.1f}", axes.x(low), axes.y(low * read),
                                 axes.x(ridge), axes.y(ridge * read));
  if (peak > 0) path += fmt::format("H{:.1f}", axes.x(high));
  return fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", path,
                     colour);
}

std::string Draw(const Chart& chart, const kernels::LinearBenchReport& report) {
  const Axes axes(chart);
  std::string svg = Grid(axes);
  svg += fmt::format("<text x=\"{}\" y=\"18\" font-weight=\"600\">{}, GOP/s</text>\n", kLeft,
                     chart.kernel);
  for (size_t i = 0; i < report.probes.size(); ++i) {
    const std::string_view colour = kColours[i % std::size(kColours)];
    bool roof = false;
    for (const LinearMeasurement* m : chart.points) {
      if (m->threads != report.probes[i].threads) continue;
      if (!std::exchange(roof, true)) svg += Roof(axes, *m, colour);
      const double x = axes.x(OpsPerByte(*m)), y = axes.y(m->ops_per_second / 1e9);
      svg +=
          fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x, y, colour);
      if (i == 0) svg += Text(x + 4, y + 13, "start", fmt::format("M={}", m->m));
    }
  }
  return svg;
}

}  // namespace

std::string RooflineSvg(const kernels::LinearBenchReport& report, const std::string& machine) {
  const std::vector<Chart> charts = ChartsOf(report);
  const auto rows = static_cast<int>((charts.size() + kColumns - 1) / kColumns);
  const double width = kColumns * kChartWidth;
  const double height = kHeader + rows * kChartHeight;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"system-ui, "
      "sans-serif\" font-size=\"10\" fill=\"#333\" role=\"img\">\n<title>Linear kernels under "
      "their "
      "roofs</title>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"16\" y=\"20\" font-size=\"14\" font-weight=\"600\">{2}, {3}</text>\n",
      width, height, machine, report.variant);
  std::string legend = "lines: memory read and multiply-adds in registers;";
  for (size_t i = 0; i < report.probes.size(); ++i) {
    legend += fmt::format(" <tspan fill=\"{}\" font-weight=\"600\">{} thread{}</tspan>",
                          kColours[i % std::size(kColours)], report.probes[i].threads,
                          report.probes[i].threads == 1 ? "" : "s");
  }
  svg += fmt::format("<text x=\"16\" y=\"36\">{}</text>\n", legend);
  for (size_t i = 0; i < charts.size(); ++i) {
    svg += fmt::format("<g transform=\"translate({} {})\">\n{}</g>\n", i % kColumns * kChartWidth,
                       kHeader + static_cast<double>(i / kColumns) * kChartHeight,
                       Draw(charts[i], report));
  }
  return svg + "</svg>\n";
}

}  // namespace nibble::apps
