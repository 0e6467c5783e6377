"""The patterns of a graph that become sparse operators, one per file.

Layers (Gemm, MatMul, Conv) begin an operator; sums and activations after them extend it.
"""
