"""The profile that params.yaml names, resolved and checked: what every other stage reads and DVC tracks."""

import yaml

from pipeline.base.dvc_files import check_matrix, dvc_project, locked_document
from pipeline.base.errors import warn
from pipeline.base.files import write_text
from pipeline.base.outside import link_outside_files
from pipeline.base.overrides import explained, unused_changes
from pipeline.base.params import PARAMS, read_document
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from stages.run import run_stage


def configure(params: Params, space: Workspace) -> None:
    """params.yaml to reports/configure/params.yaml, and links to what lies outside the project."""
    project = dvc_project(space.folder)
    check_matrix(params, project / "dvc.yaml")
    link_outside_files(params, space)
    document = {**read_document(PARAMS), "profile": params.profile, "seed": params.seed}
    before = locked_document(project / "dvc.lock")
    for key in unused_changes(before, document) if before else []:
        warn(f"configure: the change of {key} changes nothing: {explained(key, document)}")
    for doubt in params.doubts:
        warn(doubt)
    content = params.model_dump(mode="json", by_alias=True, exclude_none=False)
    write_text(space.params, yaml.safe_dump(content, sort_keys=False))
    print(f"configure: profile {params.profile}, seed {params.seed}: {space.params}", flush=True)


if __name__ == "__main__":
    run_stage("configure", configure, configures=True)
