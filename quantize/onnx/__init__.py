"""ONNX folders: recipes, plan, graph, verification."""
