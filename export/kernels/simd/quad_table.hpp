// The templates for quantised operators, combined for one instruction set. Needs vector.hpp and, on
// x86, the intrinsics.
#include "quad_dot.hpp"

#include "quad_requantise.hpp"

#include "quad_strip.hpp"

#include "quad_row.hpp"

#include "bytes.hpp"

#include "byte_lanes.hpp"

#include "byte_strip.hpp"

#include "byte_row.hpp"

#include "byte_copy.hpp"

QuadKernels make_quad_table() {
  QuadKernels table = {};
  table.strips = quad_strip_table<MFAC_WIDE>();
  table.row = quad_row;
  table.requantise = requantise_all<MFAC_WIDE>;
  table.copy_rows = copy_quads;
  return table;
}

ByteKernels make_byte_table() {
  return {byte_strip_table(), byte_row, copy_channels, gather_bytes, transpose_bytes};
}
