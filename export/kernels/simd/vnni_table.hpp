// The templates that multiply quads by VNNI, combined for one instruction set. The including file
// defines what table.hpp needs.
#include "vector.hpp"

#include "quad_table.hpp"

#include "byte_depthwise.hpp"

// Replace the kernels of quantised operators.
void use_vnni(SimdKernels& kernels, const char* name) {
  kernels.name = name;
  kernels.quads = make_quad_table();
  kernels.bytes = make_byte_table();
  fill_byte_depthwise(kernels.depthwise);
}
