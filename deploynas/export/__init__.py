"""An architecture and weights -> exports/<name>/: ONNX and manifest."""
