"""Records of finished runs on disk, by which killed work resumes: in one file, stage by stage, or in a folder for each run."""

from softprompt.records.digests import file_digest, folder_digest, object_digest, rows_digest
from softprompt.records.objects import Record, read_object, write_object
from softprompt.records.run_file import once
from softprompt.records.run_folders import DamagedRun, Outcome, RunFolders, Status, disk_is_full, run_hash
from softprompt.records.setup import setup_of
from softprompt.records.stages import read_stages, write_stage

__all__ = [
    "DamagedRun",
    "Outcome",
    "Record",
    "RunFolders",
    "Status",
    "disk_is_full",
    "file_digest",
    "folder_digest",
    "object_digest",
    "once",
    "read_object",
    "read_stages",
    "rows_digest",
    "run_hash",
    "setup_of",
    "write_object",
    "write_stage",
]
