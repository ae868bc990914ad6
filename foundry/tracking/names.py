"""The tags that Foundry puts on runs, versions and registered models in MLflow: each is spelt once.

MLflow's page of a version sorts them by their names and shows about five at a time: the score comes first, hashes last.
"""

SCORE, INTERVAL = "foundry.bits_per_byte", "foundry.bits_per_byte_interval"  # of versions, on the test text
FINGERPRINT = "foundry.fingerprint"  # of runs and versions; what joins a run, a report and an export
KEY = "foundry.key"  # of runs: random, of the state folder
RESTORED = "foundry.restored"  # of runs that a registration made in the place of a training
STAGE = "foundry.stage"
COMMAND = "foundry.command"  # of runs: what was typed
SWEEP = "foundry.sweep"
CONTENT = "foundry.sha256"  # of versions and logged models, of the export: the same content is one version
HISTORY = "foundry.champions"  # of registered models: the line of champions
MOVE = "foundry.champion_moves"  # of registered models: a change of the champion that is not finished
PROOF = "foundry.proof"
TEST = "foundry.test_sha256"  # of versions: the text of the score, which the gate compares
WHY = "foundry.promotion"
CHALLENGED = "foundry.challenged_by"
ROLLED_BACK = "foundry.rolled_back"
