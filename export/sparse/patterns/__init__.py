"""The patterns of a graph that become sparse operators, one in a file.

Layers (Gemm, MatMul, Conv) begin an operator; sums and activations behind them extend it.
"""
