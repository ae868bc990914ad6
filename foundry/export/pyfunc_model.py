"""The registered model's code: MLflow stores this file and the package beside the exported folder and runs it when the model is loaded.

No pickle: the weights are safetensors. `predict` takes texts and returns their continuations.
"""

import mlflow
from mlflow.pyfunc import PythonModel


class FoundryLM(PythonModel):
    """params: max_tokens, temperature (0 = greedy), top_k (0 = off), top_p (1 = off), seed."""

    def load_context(self, context):
        from foundry.export import verify_export
        from foundry.export.huggingface import import_huggingface
        from foundry.inference import Generator

        folder = context.artifacts["export"]
        verify_export(folder)
        self.generator = Generator(*import_huggingface(f"{folder}/hf"), "auto")

    # No type hints: MLflow would take them for the signature and drop the parameters.
    def predict(self, context, model_input, params=None):
        texts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        if wrong := [t for t in texts if not isinstance(t, str)]:
            raise ValueError(f"the input must be texts, got {type(wrong[0]).__name__}: {wrong[0]!r}")
        given = dict(params or {})
        options = {"max_new_tokens": given.pop("max_tokens", 64), **given}
        return [self.generator.generate_text(prompt=t, **options) for t in texts]


mlflow.models.set_model(FoundryLM())
