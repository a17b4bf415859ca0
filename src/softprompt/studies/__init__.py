"""Many runs: a study from its file to its tables."""

from softprompt.records.run_folders import Outcome
from softprompt.studies.config import Study, parse_study, read_study
from softprompt.studies.engine import Engine, conduct, in_process
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Plan, plan
from softprompt.studies.runs import PlannedRun
from softprompt.studies.worker import Worker

__all__ = [
    "Engine",
    "Outcome",
    "Plan",
    "PlannedRun",
    "Study",
    "StudyFolder",
    "Worker",
    "conduct",
    "in_process",
    "parse_study",
    "plan",
    "read_study",
]
