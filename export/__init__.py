"""Export of a trained generator: checkpoint, SavedModel, TFLite, ONNX, and a page for the browser."""
