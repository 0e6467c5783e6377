#include "quad_stage.hpp"

#include <cstring>

#include "simd.hpp"

namespace mfac {

void stage_quad(const uint8_t* pixels, const Images& input, int64_t channels, uint8_t around,
                const Runs& runs, Cell* staged) {
  const auto copy_rows = simd_kernels().quads.copy_rows;
  QuadCopy copy{};
  copy.from = pixels;
  copy.channel_stride = input.channel_stride();
  copy.channels = channels;
  copy.to = staged;
  copy.around = around;
  if (runs.in_place) {  // a whole channel is one run
    copy.to_stride = copy.count = runs.channel_stride;
    copy.rows = copy.step = 1;
    copy_rows(copy);
    return;
  }
  copy.to_stride = runs.row_stride;
  each_phase(runs, [&](const PhaseCopy& phase) {
    const auto fill = [&](int64_t rows) {
      std::memset(copy.to, around, static_cast<size_t>(rows * runs.row_stride) * sizeof(Cell));
      copy.to += rows * runs.row_stride;
    };
    fill(phase.above);
    if (phase.rows > 0) {
      copy.from = pixels + phase.from;
      copy.row_stride = phase.down;
      copy.rows = phase.rows;
      copy.step = phase.step;
      copy.before = phase.before;
      copy.count = phase.count;
      copy_rows(copy);
      copy.to += phase.rows * runs.row_stride;
    }
    fill(phase.below);
  });
}

}  // namespace mfac
