#!/usr/bin/python
"""List the files of a model with their digests: as this node has them already, or as the source says."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_models.folder import read_mark
from ansible.module_utils.splitrail_models.sources import SourceError, make_source, named

DOCUMENTATION = r"""
module: splitrail_model_manifest
short_description: List the files of a model with their digests
description:
  - Without O(ask) looks only whether the model's folder bears the mark of this very source, revision and
    choice of files. A source without a revision may have changed, and is never believed from a mark.
  - Changes nothing, in check mode or not.
options:
  path:
    description: The model's folder.
    type: path
    required: true
  source:
    description: >-
      Where the model comes from. C(kind) is C(hub) (with C(url), C(repository), C(revision)), C(http)
      (C(url)) or C(copy) (C(from)); C(revision) and C(proxy) are optional.
    type: dict
    required: true
  token:
    description: The hub's token.
    type: str
    default: ""
  files:
    description: Patterns of the files that are wanted.
    type: list
    elements: str
    required: true
  ask:
    description: Whether to ask the source.
    type: bool
    default: false
author: The splitrail authors
"""

RETURN = r"""
manifest:
  description: The files, or nothing where this node does not know them.
  returned: always
  type: dict
"""


def main() -> None:
    """Look, or ask."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "source": {"type": "dict", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "files": {"type": "list", "elements": "str", "required": True},
            "ask": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    said, patterns = module.params["source"], module.params["files"]
    try:
        source = make_source(said, module.params["token"])
        if module.params["ask"]:
            module.exit_json(changed=False, manifest=source.manifest(patterns).as_dict())
        mark = read_mark(Path(module.params["path"]))
        known = (
            mark is not None and bool(said.get("revision")) and mark[0].identity == named(source, patterns)
        )
        module.exit_json(changed=False, manifest=mark[0].as_dict() if mark and known else {})
    except (SourceError, KeyError) as error:
        module.fail_json(msg=f"the model's files cannot be listed: {error}")


if __name__ == "__main__":
    main()
