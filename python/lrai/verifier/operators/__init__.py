"""One class per operator, with the same verbs; `onnx_reader` maps ONNX nodes to them."""
