"""Every quick check of the GPUs, passing and failing, on a server made of files and recorded answers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import splitrail_gpu_tools as tools
from ansible.module_utils.splitrail_gpu_tools import Failed

from splitrail.ansible.filter.splitrail_gpu_fleet import fleet_checks
from splitrail.ansible.modules.splitrail_gpu_health import Node, examine

from .amd import Tools, recorded
from .host_tree import GPUS, gpu, put

DATA = Path(__file__).parents[3] / "roles/gpu_health/files/mi325x.yml"
MODEL: dict[str, Any] = yaml.safe_load(DATA.read_text(encoding="utf-8"))["model"]
PCI = "sys/bus/pci/devices"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, f"{PCI}/0000:03:00.0/vendor", "0x1a03")
    put(tmp_path, f"{PCI}/0000:03:00.0/class", "0x030000")
    put(tmp_path, "dev/kfd", "")
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    for bdf in GPUS:
        gpu(tmp_path, bdf)
        put(tmp_path, f"{PCI}/{bdf}/current_compute_partition", "SPX")
        put(tmp_path, f"{PCI}/{bdf}/current_memory_partition", "NPS1")
    return tmp_path


@pytest.fixture
def answers() -> Tools:
    return Tools()


def look(root: Path, answers: Tools) -> list[dict[str, Any]]:
    checks, _ = examine(Node(root=root, run=answers), 8, MODEL)
    return checks


def failed(root: Path, answers: Tools) -> list[tuple[str, str, Any]]:
    found = [check for check in look(root, answers) if not check["ok"]]
    assert all(check["hint"] for check in found)
    return [
        (check["name"].removeprefix("gpu_health."), check["subject"], check["measured"]) for check in found
    ]


def test_a_healthy_server_passes(root: Path, answers: Tools) -> None:
    assert failed(root, answers) == []
    names = [check["name"].removeprefix("gpu_health.") for check in look(root, answers)]
    one = {"count", "driver", "seen", "gfx", "xgmi"}
    assert {name: names.count(name) for name in names} == {
        **dict.fromkeys(one, 1),
        **dict.fromkeys(("pcie", "partition", "memory", "ras", "bad_pages"), 8),
    }


def test_tools_run_where_they_are_told_to(root: Path, answers: Tools) -> None:
    examine(Node(root=root, run=answers, prefix=("podman", "run", "--rm", "image")), 8, MODEL)
    assert {" ".join(argv[:4]) for argv in answers.asked} == {"podman run --rm image"}


# What is on the bus


def test_a_missing_gpu(root: Path, answers: Tools) -> None:
    shutil.rmtree(root / PCI / GPUS[3])
    for question in ("list", "static", "metric", "firmware", "bad-pages", "topology"):
        answers.edit(f"amd-smi {question}", lambda gpus: gpus.pop(3))
    found = {name: measured for name, _, measured in failed(root, answers)}
    assert set(found) == {"count", "seen", "xgmi"}
    assert found["count"] == (
        "7 x 1002:74a5 (at 05:00.0, 26:00.0, 46:00.0, 85:00.0, a6:00.0, c6:00.0, e5:00.0)"
    )
    assert found["xgmi"] == "49 of 56 ways"


def test_a_gpu_of_another_model(root: Path, answers: Tools) -> None:
    put(root, f"{PCI}/{GPUS[0]}/device", "0x74a1")
    assert failed(root, answers)[0][2].startswith("7 x 1002:74a5, 1 x 1002:74a1 (at 26:00.0")


def test_a_ninth_gpu(root: Path, answers: Tools) -> None:
    shutil.copytree(root / PCI / GPUS[0], root / PCI / "0000:f5:00.0", symlinks=True)
    assert {name for name, *_ in failed(root, answers)} == {"count", "seen"}


@pytest.mark.parametrize(
    ("speed", "width", "measured"),
    [
        ("16.0 GT/s PCIe", 16, "16 GT/s x16"),
        ("32.0 GT/s PCIe", 8, "32 GT/s x8"),
        ("2.5 GT/s PCIe", 1, "2.5 GT/s x1"),
    ],
)
def test_a_link_that_was_trained_down(
    root: Path, answers: Tools, speed: str, width: int, measured: str
) -> None:
    put(root, f"{PCI}/{GPUS[5]}/current_link_speed", speed)
    put(root, f"{PCI}/{GPUS[5]}/current_link_width", width)
    assert failed(root, answers) == [("pcie", GPUS[5], measured)]


@pytest.mark.parametrize("text", ["Unknown", ""])
def test_a_link_that_tells_nothing(root: Path, answers: Tools, text: str) -> None:
    put(root, f"{PCI}/{GPUS[5]}/current_link_speed", text)
    ((name, subject, measured),) = failed(root, answers)
    assert (name, subject) == ("pcie", GPUS[5])
    assert measured.startswith("could not be checked: ")


def test_a_divided_gpu(root: Path, answers: Tools) -> None:
    put(root, f"{PCI}/{GPUS[1]}/current_compute_partition", "CPX")
    assert failed(root, answers) == [("partition", GPUS[1], "CPX NPS1")]


# The driver


@pytest.mark.parametrize(
    ("path", "measured"),
    [
        ("sys/module/amdgpu", "not loaded"),
        ("dev/kfd", "loaded, without /dev/kfd"),
        (f"{PCI}/{GPUS[6]}/driver", f"loaded, without {GPUS[6]}"),
    ],
)
def test_a_driver_that_is_not_there(root: Path, answers: Tools, path: str, measured: str) -> None:
    (root / path).rename(root / "gone")
    assert failed(root, answers) == [("driver", "amdgpu", measured)]


def test_another_driver_has_the_gpu(root: Path, answers: Tools) -> None:
    link = root / PCI / GPUS[6] / "driver"
    link.unlink()
    (root / "sys/bus/pci/drivers/vfio-pci").mkdir()
    link.symlink_to(root / "sys/bus/pci/drivers/vfio-pci")
    assert failed(root, answers) == [("driver", "amdgpu", f"loaded, without {GPUS[6]}")]


def test_no_gpu_at_all(root: Path, answers: Tools) -> None:
    for bdf in GPUS:
        shutil.rmtree(root / PCI / bdf)
    text = (Path(__file__).parents[1] / "fixtures/amd/amd-smi-no-driver.txt").read_text(encoding="utf-8")
    for question in ("list", "static", "metric", "firmware", "bad-pages", "topology"):
        answers.texts[f"amd-smi {question}"] = text
    answers.texts["rocminfo"] = "ROCk module is NOT loaded, possibly no GPU devices\n"
    answers.failures["rocm-smi"] = Failed("rocm-smi --showtopo ended with code 2: Driver not initialized")
    found = failed(root, answers)
    assert found[0] == ("count", "PCI bus", "0 x 1002:74a5")
    assert found[1] == ("driver", "amdgpu", "loaded, with no GPU")
    assert all("amdgpu not found in modules" in measured for name, _, measured in found if name == "ras")
    assert {name for name, *_ in found} == {
        *("count", "driver", "seen", "gfx", "memory", "ras", "bad_pages", "xgmi", "firmware")
    }


# What the tools tell


@pytest.mark.parametrize(
    ("tool", "change", "found"),
    [
        # The size that was announced, and the one of MI300X.
        ("static", lambda gpu: gpu["vram"].update(size={"value": 294896, "unit": "MB"}),
         ("memory", "GPU 2", 287.98)),
        ("static", lambda gpu: gpu["vram"].update(size={"value": 192, "unit": "GB"}),
         ("memory", "GPU 2", 192.0)),
        ("static", lambda gpu: gpu["vram"].update(size="N/A"),
         ("memory", "GPU 2", "could not be checked: amd-smi does not tell its memory")),
        ("static", lambda gpu: gpu["vram"].update(size={"value": 256, "unit": "furlongs"}),
         ("memory", "GPU 2", "could not be checked: vram.size is 256 'furlongs'")),
        ("metric", lambda gpu: gpu["ecc"].update(total_uncorrectable_count=3),
         ("ras", "GPU 2", "3 uncorrectable, 0 deferred")),
        ("metric", lambda gpu: (gpu["ecc"].update(total_deferred_count=1),
                                gpu["ecc_blocks"]["UMC"].update(deferred_count=1)),
         ("ras", "GPU 2", "0 uncorrectable, 1 deferred in UMC")),
        # A GPU that is being reset answers N/A.
        ("metric", lambda gpu: gpu.update(ecc="N/A"),
         ("ras", "GPU 2", "could not be checked: amd-smi does not count uncorrectable errors")),
        ("bad-pages", lambda gpu: gpu.update(retired=[{"page_address": "0x1", "status": "RESERVED"}]),
         ("bad_pages", "GPU 2", "1 retired")),
        ("bad-pages", lambda gpu: gpu.update(pending=[{}, {}]), ("bad_pages", "GPU 2", "2 pending")),
        ("bad-pages", lambda gpu: gpu.update(un_res="N/A"),
         ("bad_pages", "GPU 2",
          "could not be checked: amd-smi does not tell of un_res pages; it must run as root")),
        ("topology", lambda gpu: gpu["links"][5].update(link_type="PCIE", weight=40, num_hops=2),
         ("xgmi", "full mesh", "55 of 56 ways; 2-5 PCIE weight 40")),
        # A detour over another GPU still counts as one hop; its weight tells.
        ("topology", lambda gpu: gpu["links"][5].update(weight=30),
         ("xgmi", "full mesh", "55 of 56 ways; 2-5 XGMI weight 30")),
        ("topology", lambda gpu: gpu["links"][5].update(link_status="DISABLED"),
         ("xgmi", "full mesh", "55 of 56 ways; 2-5 XGMI weight 15 DISABLED")),
        ("topology", lambda gpu: gpu.update(links="N/A"), ("xgmi", "full mesh", "49 of 56 ways")),
        ("list", lambda gpu: gpu.update(bdf="0000:99:00.0"),
         ("seen", "amd-smi list", f"8, without {GPUS[2]}")),
    ],
)  # fmt: skip
def test_a_gpu_that_is_ill(
    root: Path,
    answers: Tools,
    tool: str,
    change: Callable[[dict[str, Any]], None],
    found: tuple[str, str, object],
) -> None:
    answers.edit(f"amd-smi {tool}", lambda gpus: change(gpus[2]))
    assert failed(root, answers) == [found]


def test_one_dead_gpu_does_not_flood_the_report(root: Path, answers: Tools) -> None:
    def kill(gpus: list[dict[str, Any]]) -> None:
        for entry in gpus:
            for link in entry["links"]:
                if 2 in {entry["gpu"], link["gpu"]} and entry["gpu"] != link["gpu"]:
                    link.update(link_type="UNKNOWN", weight=0)

    answers.edit("amd-smi topology", kill)
    ((_, _, measured),) = failed(root, answers)
    assert measured.startswith("42 of 56 ways; 0-2 UNKNOWN weight 0, 1-2")
    assert measured.endswith(" and 10 more")


@pytest.mark.parametrize(
    ("spoilt", "measured"),
    [
        (("Name:                    gfx942", "Name:                    gfx90a", 1), "1 x gfx90a, 7 x gfx942"),
        (("Name:                    gfx942", "Name:                    gfx950", -1), "8 x gfx950"),
        (("*** Done ***", "", 1), "could not be checked: rocminfo stopped half-way:"),
    ],
)
def test_rocminfo(root: Path, answers: Tools, spoilt: tuple[str, str, int], measured: str) -> None:
    answers.replace("rocminfo", *spoilt)
    ((name, _, found),) = failed(root, answers)
    assert name == "gfx"
    assert found.startswith(measured)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON but ''"),
        ("Segmentation fault", "no JSON but 'Segmentation fault'"),
        (recorded("amd-smi metric")[:900], "its JSON is not whole"),
        ("{}", "its JSON lists no GPUs"),
        ("[]", None),
        ('{"gpu_data": "N/A"}', "its JSON lists no GPUs"),
        ('["GPU 0"]', "its JSON lists no GPUs"),
    ],
)
def test_an_answer_that_is_none(root: Path, answers: Tools, text: str, says: str | None) -> None:
    answers.texts["amd-smi list"] = text
    ((name, _, measured),) = failed(root, answers)
    assert name == "seen"
    assert (says in measured) if says else measured.startswith("0, without 0000:05:00.0")


def test_warnings_before_the_answer_do_no_harm(root: Path, answers: Tools) -> None:
    answers.texts["amd-smi static"] = "WARNING: [user] not in group render\n" + recorded("amd-smi static")
    assert failed(root, answers) == []


def test_an_unwrapped_answer_is_an_answer() -> None:
    """ROCm 6 has no gpu_data around the list."""
    document = json.loads(recorded("amd-smi static"))["gpu_data"]
    assert tools.smi(json.dumps(document)) == document


@pytest.mark.parametrize("question", ["list", "static", "metric", "firmware", "bad-pages"])
def test_a_tool_that_fails_is_a_finding(root: Path, answers: Tools, question: str) -> None:
    answers.failures[f"amd-smi {question}"] = Failed("amd-smi did not end within 60 s")
    found = failed(root, answers)
    assert found
    assert {measured for _, _, measured in found} == {"could not be checked: amd-smi did not end within 60 s"}


# rocm-smi, where amd-smi does not tell of the links

BETWEEN_2_AND_5 = {
    "Weight": ("GPU2   15           15           0            15           15           15 ",
               "GPU2   15           15           0            15           15           40 "),
    "Link Type": ("GPU2   XGMI         XGMI         0            XGMI         XGMI         XGMI",
                  "GPU2   XGMI         XGMI         0            XGMI         XGMI         PCIE"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ([], None),
        (["Weight", "Link Type"], "55 of 56 ways; 2-5 PCIE weight 40"),
        # A detour over another GPU.
        (["Weight"], "55 of 56 ways; 2-5 XGMI weight 40"),
    ],
)
def test_rocm_smi_tells_of_the_links_too(
    root: Path, answers: Tools, changes: list[str], measured: str | None
) -> None:
    answers.failures["amd-smi topology"] = Failed("amd-smi topology ended with code 255")
    for change in changes:
        answers.replace("rocm-smi", *BETWEEN_2_AND_5[change])
    assert failed(root, answers) == ([("xgmi", "full mesh", measured)] if measured else [])


def test_rocm_smi_is_asked_only_where_amd_smi_has_no_answer(root: Path, answers: Tools) -> None:
    look(root, answers)
    assert ["rocm-smi", "--showtopo"] not in answers.asked


def test_rocm_smi_sees_a_gpu_less(root: Path, answers: Tools) -> None:
    answers.failures["amd-smi topology"] = Failed("amd-smi topology ended with code 255")
    lines = recorded("rocm-smi").splitlines()
    # The last column and row of each table.
    answers.texts["rocm-smi"] = "".join(
        (line[:98].rstrip() if line.startswith(("GPU", "       ")) and "[" not in line else line) + "\n"
        for line in lines
        if not line.startswith("GPU7 ")
    )
    assert failed(root, answers) == [("xgmi", "full mesh", "42 of 56 ways")]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("================================== End of ROCm SMI Log", "", "rocm-smi stopped half-way: "),
        ("Hops between", "Steps between", "table of Hops between two GPUs is not whole"),
        ("GPU3   XGMI         XGMI ", "GPU3   XGMI ", "table of Link Type between two GPUs is not whole"),
        ("GPU6   15  ", "GPU9   15  ", "table of Weight between two GPUs is not whole"),
    ],
)
def test_an_answer_of_rocm_smi_that_is_not_whole(
    root: Path, answers: Tools, old: str, new: str, says: str
) -> None:
    answers.failures["amd-smi topology"] = Failed("amd-smi topology ended with code 255")
    answers.replace("rocm-smi", old, new)
    ((name, subject, measured),) = failed(root, answers)
    assert (name, subject) == ("xgmi", "amd-smi topology")
    assert measured.startswith("could not be checked: amd-smi topology ended with code 255; ")
    assert says in measured


# Running a tool


def script(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_run_gives_both_streams(path: Path) -> None:
    script(path, "rvs", "echo out; echo complaint >&2")
    assert tools.run(["rvs"], 10) == "out\ncomplaint\n"


def test_run_names_a_tool_that_is_missing(path: Path) -> None:
    assert path.is_dir()
    with pytest.raises(Failed, match="no-such-tool is not installed"):
        tools.run(["no-such-tool"], 10)


def test_run_tells_a_failure_and_keeps_the_output(path: Path) -> None:
    script(path, "rvs", "echo half; echo 'HSA error' >&2; echo '#'; exit 3")
    with pytest.raises(Failed, match="rvs ended with code 3: HSA error") as caught:
        tools.run(["rvs"], 10)
    assert caught.value.output == "half\nHSA error\n#\n"


def test_run_kills_a_tool_that_hangs_with_its_children(path: Path) -> None:
    script(path, "rvs", "echo begun; sleep 61.7 & sleep 61.7")
    began = time.monotonic()
    with pytest.raises(Failed, match=r"rvs -c x did not end within 0.5 s") as caught:
        tools.run(["rvs", "-c", "x"], 0.5)
    assert time.monotonic() - began < 5
    assert caught.value.output == "begun\n"
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not any(b"61.7" in command for command in commands)


# The fleet


def inventory(version: str = "113-A", gpus: int = 8, **others: str) -> dict[str, dict[str, str]]:
    return {str(number): {"VBIOS": version, **others} for number in range(gpus)}


def fleet(inventories: dict[str, Any], host: str) -> dict[str, Any]:
    (check,) = fleet_checks(inventories, host)
    return check


def test_a_fleet_of_one_version() -> None:
    checks = fleet_checks({"n1": inventory(PM="1"), "n2": inventory(PM="1")}, "n2")
    assert [(check["subject"], check["ok"]) for check in checks] == [("PM", True), ("VBIOS", True)]


def test_the_odd_node_is_named_and_no_other() -> None:
    known = {"n1": inventory(), "n2": inventory("113-B"), "n3": inventory()}
    assert [fleet(known, host)["ok"] for host in known] == [True, False, True]
    assert fleet(known, "n2")["measured"] == "113-B"
    assert fleet(known, "n2")["required"] == "113-A"


def test_the_odd_gpu_is_named() -> None:
    mixed = inventory()
    mixed["3"]["VBIOS"] = mixed["6"]["VBIOS"] = "113-B"
    check = fleet({"n1": mixed, "n2": inventory()}, "n1")
    assert not check["ok"]
    assert check["measured"] == "113-A on GPU 0, 1, 2, 4, 5, 7; 113-B on GPU 3, 6"


def test_without_a_majority_nobody_is_right() -> None:
    known = {"n1": inventory(), "n2": inventory("113-B")}
    assert [fleet(known, host)["ok"] for host in known] == [False, False]
    assert fleet(known, "n1")["required"] == ("one version, and no majority: n1 has 113-A; n2 has 113-B")


@pytest.mark.parametrize("lost", ["", None])
def test_a_version_that_is_not_told_is_odd(lost: str | None) -> None:
    silent: dict[str, Any] = inventory()
    if lost is None:
        del silent["4"]["VBIOS"]
    else:
        silent["4"]["VBIOS"] = lost
    check = fleet({"n1": silent, "n2": inventory()}, "n1")
    assert not check["ok"]
    assert check["measured"].endswith("missing on GPU 4")


def test_missing_everywhere_is_not_equal() -> None:
    assert not fleet({"n1": inventory(""), "n2": inventory("")}, "n1")["ok"]


def test_no_versions_at_all_are_not_ok() -> None:
    assert not fleet({"n1": {}, "n2": {}}, "n1")["ok"]
    assert [check["ok"] for check in fleet_checks({"n1": {}, "n2": inventory()}, "n1")] == [False]


def test_the_inventory_is_taken(root: Path, answers: Tools) -> None:
    _, taken = examine(Node(root=root, run=answers), 8, MODEL)
    assert set(taken) == {str(number) for number in range(8)}
    assert taken["0"]["VBIOS"] == "113-M3250100-101 022.040.003.043.000001"
    assert {"driver", "PM", "RLC", "TA_RAS"} < set(taken["0"])
    # ROCm 6 and other models call the image by its older name.
    answers.edit("amd-smi static", lambda gpus: [gpu.update(vbios=gpu.pop("ifwi")) for gpu in gpus])
    assert examine(Node(root=root, run=answers), 8, MODEL)[1] == taken
