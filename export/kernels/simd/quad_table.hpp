// The templates for quantised operators, combined for one instruction set. Needs vector.hpp and, on
// x86, the intrinsics.
#include "quad_dot.hpp"

#include "quad_requantise.hpp"

#include "quad_strip.hpp"

#include "quad_row.hpp"

#include "bytes.hpp"

QuadKernels make_quad_table() {
  QuadKernels table = {};
  table.strips = quad_strip_table<MFAC_WIDE>();
  table.row = quad_row;
  table.requantise = requantise_all<MFAC_WIDE>;
  table.copy_rows = copy_quads;
  table.to_rows = bytes_to_rows;
  return table;
}
