// The templates of this folder, combined for one instruction set. The including file defines
// MFAC_WIDE and MFAC_NARROW (lanes), and MFAC_REGISTERS (vector registers).
#include "vector.hpp"

#include "strip.hpp"

#include "row_copy.hpp"

#include "transpose.hpp"

#include "row.hpp"

#include "elementwise.hpp"

#include "quad_table.hpp"

#include "float_sums.hpp"

#include "layer_norm.hpp"

#include "depthwise.hpp"

#include "attention.hpp"

SimdKernels make_table(const char* name) {
  SimdKernels table = {};
  table.name = name;
  table.wide = strip_table<MFAC_WIDE, 0>();
  table.narrow = strip_table<MFAC_NARROW, 0>();
  table.rows[0] = strip_table<MFAC_NARROW, 8 / MFAC_NARROW>();
  table.rows[1] = strip_table<MFAC_NARROW, 16 / MFAC_NARROW>();
  table.rows[2] = strip_table<MFAC_NARROW, 32 / MFAC_NARROW>();
  table.to_columns = to_columns<MFAC_WIDE>;
  table.to_rows = to_rows<MFAC_WIDE>;
  table.to_rows_gelu_erf = to_rows<MFAC_WIDE, gelu_erf_of<MFAC_WIDE>>;
  table.to_rows_gelu_tanh = to_rows<MFAC_WIDE, gelu_tanh_of<MFAC_WIDE>>;
  table.copy_rows = copy_rows;
  table.row[0] = row_of_singles;
  table.row[1] = row_of_blocks<4, 4>;
  table.row[2] = row_of_blocks<8, MFAC_NARROW>;
  table.row[3] = row_of_blocks<16, MFAC_WIDE>;
  table.clip_rows = clip_rows;
  table.gelu_erf = each<MFAC_WIDE, gelu_erf_of<MFAC_WIDE>>;
  table.gelu_tanh = each<MFAC_WIDE, gelu_tanh_of<MFAC_WIDE>>;
  table.scale_sums = scale_sums<MFAC_WIDE>;
  table.scale_row = scale_row<MFAC_WIDE>;
  table.quantise = quantise_all<MFAC_WIDE>;
  table.all_finite = all_finite<MFAC_WIDE>;
  table.rows_finite = rows_finite<MFAC_WIDE>;
  table.layer_norm = layer_norm;
  table.depthwise = make_depthwise_table();
  table.quads = make_quad_table();
  table.bytes = make_byte_table();
  table.attention = attention_kernels<MFAC_WIDE>();
  return table;
}
