"""Makers of the ONNX files that `onnx_files.py` beside this folder attacks with."""
