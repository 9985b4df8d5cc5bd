"""Running ONNX files: sessions, and the engines that are compiled from them."""
