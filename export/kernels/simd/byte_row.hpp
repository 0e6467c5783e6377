// One row of activations: the four outputs of a group are the lanes.

void byte_row(const ByteStrip& given, int32_t* sums) {
  const ByteStrip s = given;
  constexpr int kChains = 4;
  const auto add_step = [&](Ints<4>& to, const ByteStep& step) {
    uint32_t quad = s.base[step.offsets[0]];
    quad |= static_cast<uint32_t>(s.base[step.offsets[1]]) << 8;
    quad |= static_cast<uint32_t>(s.base[step.offsets[2]]) << 16;
    quad |= static_cast<uint32_t>(s.base[step.offsets[3]]) << 24;
    add_products(to, broadcast_int<4>(static_cast<int32_t>(quad)),
                 QuadWeights<4>(load_ints<4>(step.cells)));
  };
  for (int64_t group = 0; group < s.groups; ++group) {
    Ints<4> sum[kChains] = {load_ints<4>(s.begin + group * kBlockOutputs)};
    const ByteStep* step = s.steps + s.starts[group];
    const ByteStep* const end = s.steps + s.starts[group + 1];
    for (; step + kChains <= end; step += kChains) {
      MFAC_UNROLL
      for (int c = 0; c < kChains; ++c) add_step(sum[c], step[c]);
    }
    for (; step < end; ++step) add_step(sum[0], *step);
    store_ints<4>(sums + group * kBlockOutputs, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}
