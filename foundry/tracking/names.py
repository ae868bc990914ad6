"""The names of the tags and metrics in MLflow that more than one module writes or reads.

Each is spelt here and nowhere else.

The tags that Foundry puts on runs, versions and registered models begin with `foundry.`. MLflow's page of a version
sorts tags by name and shows about five at a time, so the names are chosen such that the score comes first and hashes
come last.
"""

SCORE, INTERVAL = "foundry.bits_per_byte", "foundry.bits_per_byte_interval"  # of versions: on the test text
EXACT, EXACT_INTERVAL = "foundry.exact_match", "foundry.exact_match_interval"  # of chat versions: the macro mean
ENDED, FORGETTING = "foundry.ended", "foundry.forgetting"  # of chat versions: guards of the gate
FINGERPRINT = "foundry.fingerprint"  # of runs and versions: joins a run, a report and an export
KEY = "foundry.key"  # of runs: random, one per state folder
RESTORED = "foundry.restored"  # of runs that a registration created in place of a training's own
STAGE = "foundry.stage"
COMMAND = "foundry.command"  # of runs: the command line that was typed
SWEEP = "foundry.sweep"
CONTENT = "foundry.sha256"  # of versions and logged models: hash of the export; the same content is one version
HISTORY = "foundry.champions"  # of registered models: the line of champions
MOVE = "foundry.champion_moves"  # of registered models: a change of champion that is not finished
PROOF = "foundry.proof"
TEST = "foundry.test_sha256"  # of versions: hash of the test text of the score, which the gate compares
WHY = "foundry.promotion"
CHALLENGED = "foundry.challenged_by"
ROLLED_BACK = "foundry.rolled_back"

COMMIT, DIRTY = "mlflow.source.git.commit", "git.dirty"
LOCK_HASH = "dvc.lock.md5"
EXPERIMENT, BASELINE, REVISION = "dvc.exp_name", "dvc.exp_baseline_rev", "dvc.exp_rev"
FLOW_RUN = "prefect.flow_run_id"
PARENT = "mlflow.parentRunId"  # MLflow nests a run in the run with this id
NOTE = "mlflow.note.content"  # MLflow's description of a run or an experiment

VALIDATION = "validation/bits_per_byte"
TEST_SCORE = "test_bits_per_byte"
