"""The folder of a study.

study.yaml     the study as it was read
runs/ID/       a run, see `softprompt.records.run_folders`
  checkpoint/    the state of training; deleted when the run has ended
  prompt/        the saved prompt, of final runs
claims/, set-aside/
ensembles/     evaluations of the prompts of several seeds together
"""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.files import read_text, write_text
from softprompt.fitting.run_config import parse_yaml
from softprompt.fitting.settings import as_mapping
from softprompt.records.run_folders import RunFolders, as_yaml
from softprompt.studies.config import Study, parse_study


@dataclass(frozen=True)
class StudyFolder(RunFolders):
    """A study's files, below `path`."""

    def begin(self, study: Study) -> None:
        """Write study.yaml. Raises OSError if the folder cannot be written to."""
        for name in ("runs", "claims"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with self.claim("study", wait=True):  # two processes may begin at once
            write_text(self.path / "study.yaml", as_yaml(study.values))

    def study(self) -> Study:
        """The study of this folder. Raises FileNotFoundError if there is none, ValueError if the file is invalid."""
        file = self.path / "study.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no study: there is no {file.name} in it")
        return parse_study(as_mapping(parse_yaml(read_text(file), str(file)), str(file)))
