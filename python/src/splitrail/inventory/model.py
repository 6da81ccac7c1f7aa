"""The variables of an inventory that belong to no role: playbooks and the command line read them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Cluster(BaseModel):
    """What an inventory says of its cluster as a whole; the descriptions are those of the schema."""

    model_config = ConfigDict(extra="forbid")

    cluster_name: Name = Field(description="The cluster's name in run records and secrets: a-z, 0-9 and -.")
    release: dict[str, Any] = Field(default={}, description="A file of inventories/releases, every pin.")
    topology_name: str = Field(
        default="",
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="A file of inventories/topologies, or one of its families with a ratio.",
    )
    topology: dict[str, Any] = Field(default={}, description="What is served, at which P:D.")
    bundle_url: str = Field(
        default="", pattern=r"^(https?://.+)?$", description="Where hosts install from without a network."
    )
    bundle_folder: str = Field(default="", description="The bundle's folder on the head, which serves it.")
    bundle_key: str = Field(default="", description="The public key that the bundle is signed with.")
    fabric_waiver: str = Field(default="", description="Reason for a start without a proof of the fabric.")
    fabric_prove_only: bool = Field(default=False, description="Look at the fabric and configure nothing.")
    ucx_env: dict[str, str | int] = Field(default={}, description="What UCX is told on the nodes.")
    gpus_per_node: int = Field(default=8, ge=1, le=64, description="GPUs of a server.")
    gpu_device_gids: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="Groups that own the GPUs' devices."
    )
    splitrail_serial: int | str | list[int | str] = Field(
        default=[], description="Hosts that are changed at a time: a number, a percentage, or a list of them."
    )
    splitrail_max_fail_percentage: Annotated[float, Field(ge=0, le=100)] = Field(
        default=25, description="Hosts that may fail before a verb stops for all; 0: none is left behind."
    )
    pool: Name = Field(default="any", description="The pool that a host belongs to.")
    rail_position: int = Field(default=0, ge=0, description="A server's number on its rails.")


class Connection(BaseModel):
    """Ansible's own variables that say how a host is reached; others of Ansible's are known by name."""

    model_config = ConfigDict(extra="forbid")

    ansible_host: str = Field(default="", min_length=1, description="The host's address.")
    ansible_port: int = Field(default=22, ge=1, le=65535, description="Port of its SSH server.")
    ansible_user: str = Field(default="", pattern=r"^[a-z_][a-z0-9_-]{0,31}\$?$", description="Its user.")
    ansible_become: bool = Field(default=True, description="Whether tasks become root.")
    ansible_pipelining: bool = Field(default=True, description="Fewer connections a task.")
    ansible_ssh_timeout: int = Field(default=10, ge=1, description="Seconds for a connection.")
    ansible_ssh_retries: int = Field(default=3, ge=0, description="Further attempts.")
    ansible_group_priority: int = Field(default=1, description="Order of groups of one depth.")


# Of the plugins ssh, local, sudo and sh, beside those above; a test compares them with what the plugins say.
_ANSIBLE = """
    become_exe become_flags become_method become_pass become_password become_user connection
    control_path control_path_dir host_key_checking local_tmp password private_key private_key_file
    private_key_passphrase python_interpreter remote_tmp admin_users async_dir common_remote_group
    shell_allow_world_readable_temp shell_executable shell_type scp_executable scp_extra_args scp_if_ssh
    sftp_batch_mode sftp_executable sftp_extra_args ssh_args ssh_common_args ssh_connection ssh_control_path
    ssh_control_path_dir ssh_executable ssh_extra_args ssh_host ssh_host_key_checking ssh_pass ssh_password
    ssh_password_mechanism ssh_pipelining ssh_pkcs11_provider ssh_port ssh_private_key ssh_private_key_file
    ssh_private_key_passphrase ssh_scp_executable ssh_sftp_executable ssh_transfer_method ssh_use_tty ssh_user
    ssh_verbosity sshpass_prompt sudo_chdir sudo_exe sudo_flags sudo_pass sudo_user executable
    keep_remote_files system_tmpdirs local_become_strip_preamble local_become_success_timeout
"""
ANSIBLE = frozenset(f"ansible_{name}" for name in _ANSIBLE.split())
# Names that a template of an inventory may read and nobody declares.
_MAGIC = """
    groups group_names hostvars inventory_hostname inventory_hostname_short inventory_dir inventory_file
    playbook_dir role_path omit lookup query q now undef range dict lipsum cycler joiner namespace item
    environment ansible_facts ansible_check_mode ansible_diff_mode ansible_version ansible_play_hosts
    ansible_play_hosts_all ansible_play_batch ansible_play_name ansible_playbook_python ansible_config_file
    ansible_run_tags ansible_skip_tags ansible_limit ansible_verbosity ansible_forks ansible_role_name
"""
MAGIC = frozenset(_MAGIC.split())
