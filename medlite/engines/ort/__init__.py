"""The ONNX Runtime engine: folders of `medlite quantize --format onnx`."""
