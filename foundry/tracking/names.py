"""The tags that Foundry puts on runs, versions and registered models in MLflow: each is spelt once."""

FINGERPRINT = "foundry.fingerprint"  # of runs and versions; what joins a run, a report and an export
KEY = "foundry.key"  # of runs: random, of the state folder
RESTORED = "foundry.restored"  # of runs that a registration made in the place of a training
STAGE = "foundry.stage"
SWEEP = "foundry.sweep"
CONTENT = "foundry.content_sha256"  # of versions: the same content is one version
HISTORY = "foundry.champions"  # of registered models: the line of champions
MOVE = "foundry.champion_moves"  # of registered models: a change of the champion that is not finished
WHY = "foundry.promotion"
CHALLENGED = "foundry.challenged_by"
ROLLED_BACK = "foundry.rolled_back"
