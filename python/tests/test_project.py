from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.project import Project, ProjectError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "inventories/lab").mkdir(parents=True)
    (tmp_path / "inventories/lab/hosts.yml").write_text("all: {}\n")
    (tmp_path / "ansible.cfg").write_text(
        "[defaults]\ninventory = inventories/lab\ncallback_plugins = a/b:c\nhost_key_checking = false\n"
    )
    (tmp_path / "site.yml").write_text(
        "- import_playbook: playbooks/one.yml\n"
        "- name: Two\n  ansible.builtin.import_playbook: playbooks/two.yml\n"
    )
    (tmp_path / "playbooks/one.yml").write_text("- hosts: all\n- hosts: head\n  vars: {x: !vault abc}\n")
    (tmp_path / "playbooks/two.yml").write_text("- hosts: all\n")
    return Project(tmp_path)


def test_it_is_found_from_below_and_missed_elsewhere(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert Project.find(project.root / "inventories/lab") == project
    with pytest.raises(ProjectError, match=r"ansible\.cfg and site\.yml"):
        Project.find(tmp_path_factory.mktemp("elsewhere"))


def test_the_verbs_are_those_that_the_site_imports(project: Project) -> None:
    root = project.root.resolve()
    assert project.verbs() == [("one", root / "playbooks/one.yml"), ("two", root / "playbooks/two.yml")]


def test_plays_are_counted_through_imports(project: Project) -> None:
    assert project.count_plays(project.root / "site.yml") == 3
    (project.root / "playbooks/two.yml").write_text("- import_playbook: '{{ later }}'\n")
    assert project.count_plays(project.root / "site.yml") is None


@pytest.mark.parametrize("text", ["just a word\n", "{a: 1}\n", "- [\n", "- word\n"])
def test_a_broken_site_is_named(project: Project, text: str) -> None:
    (project.root / "site.yml").write_text(text)
    with pytest.raises(ProjectError, match=r"site\.yml"):
        project.verbs()


def test_the_inventory_is_absolute_or_an_error_that_names_the_choices(project: Project) -> None:
    lab = str((project.root / "inventories/lab").resolve())
    assert project.inventory(None) == lab
    assert project.inventory(lab + "/../lab") == lab
    assert project.inventory("h1,") == "h1,"
    with pytest.raises(ProjectError, match="no such file or folder; this project has: lab"):
        project.inventory("inventories/lob")


def test_no_inventory_at_all_is_an_error(project: Project) -> None:
    project.config.write_text("[defaults]\n")
    with pytest.raises(ProjectError, match="name one with -i"):
        project.inventory(None)


def test_settings_come_from_ansible_cfg(project: Project) -> None:
    assert project.setting("host_key_checking") == "false"
    assert project.setting("nonesuch") is None
    assert project.setting_paths("callback_plugins") == f"{project.root}/a/b:{project.root}/c"
    project.config.write_text("no section\n")
    with pytest.raises(ProjectError, match=r"ansible\.cfg"):
        project.setting("inventory")


def test_a_missing_playbook_is_named(project: Project) -> None:
    with pytest.raises(ProjectError, match=r"down\.yml: no such playbook"):
        project.playbook("playbooks/down.yml")
