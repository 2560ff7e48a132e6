"""Serving a registered model from code; nothing is unpickled."""

from pathlib import Path
from typing import Any


def serve(load: Any, predict: Any) -> None:
    """For a models-from-code script: `load(directory)` returns a model, `predict(model, rows)` an array."""
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Served(PythonModel):
        def load_context(self, context: Any) -> None:
            self.model = load(Path(context.artifacts["model"]))

        def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
            return predict(self.model, model_input)

    mlflow.models.set_model(Served())
