"""Records of an export that tests share."""

from foundry.export.proof import (
    GGUFProof,
    GreedyProof,
    LlamaCppMissing,
    LogitsProof,
    Proof,
    SettingsProof,
    TokenIdsProof,
    WeightsProof,
)


def example_proof():
    """A proof whose numbers are all different."""
    return Proof(
        weights=WeightsProof(tensors=29),
        token_ids=TokenIdsProof(strings=126, hostile=62, of_the_vocabulary=64, tokens=34567),
        logits=LogitsProof(tokens=2048, tolerance=1e-4, largest_difference_below=1e-5),
        greedy=GreedyProof(prompts=8, tokens=509, ties=1),
        settings=SettingsProof(compared=91),
        gguf={"q8_0": GGUFProof(format="q8_0", tensors=29, tokens=400, largest_rounding=0.0123)},
        llama_cpp=LlamaCppMissing(why="not proved here: xllamacpp is not installed"),
    )
