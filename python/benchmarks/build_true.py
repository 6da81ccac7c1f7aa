"""Build the true UCX, from Debian's source package, by the ROCm image's own recipe, and time its stages.

usage: python python/benchmarks/build_true.py [FOLDER]     keeps sources and images in FOLDER

Run it from the project's root, as root, on a Debian with buildah, dpkg-dev and mmdebstrap. The stages base,
tools and ucx of templates/containerfiles/mi325x are built as they are, with the flags of the release
mi325x-rocm7.0 but --with-rocm: no ROCm is in Debian. The base image is bootstrapped, the interpreter is the
system's own, because neither AMD's image nor uv's interpreters are in Debian. Then the image test of the role
serving_image looks at UCX's transports and libibverbs' provider, and at a UCX --without-verbs, which
it must refuse. (To leave the flag out is not enough: UCX then takes libibverbs where it finds it.)
"""

from __future__ import annotations

import functools
import json
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "inventories/releases/mi325x-rocm7.0.yml"
BASE = "localhost/build-true-base"
ASKED = {"ucx_transports": ["rc_verbs", "rc_mlx5", "ud_mlx5"], "verbs_providers": ["mlx5"]}


def run(*command: str | Path, cwd: Path | None = None, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command. Exits with the end of its output when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        sys.exit(
            f"{' '.join(words)[:300]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def say(line: str) -> None:
    """One line of the answer, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def source_package(work: Path) -> tuple[Path, str]:
    """Debian's source of UCX, unpacked, and its version, from where this system's own packages come from."""
    lists = work / "apt"
    lists.mkdir()
    (work / "lists/partial").mkdir(parents=True)
    for file in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if not file.is_file() or file.suffix not in (".list", ".sources"):
            continue
        lines = file.read_text().splitlines()
        if file.suffix == ".sources":
            lines = ["Types: deb-src" if line.startswith("Types:") else line for line in lines]
        else:
            lines = [line.replace("deb ", "deb-src ", 1) for line in lines if line.startswith("deb ")]
        (lists / file.name).write_text("\n".join(lines) + "\n")
    options = ["-o", f"Dir::Etc::sourceparts={lists}", "-o", "Dir::Etc::sourcelist=/dev/null"]
    options += ["-o", f"Dir::State::lists={work}/lists", "-o", "APT::Sandbox::User=root"]
    run("apt-get", *options, "update")
    run("apt-get", *options, "source", "--download-only", "ucx", cwd=work)
    (description,) = work.glob("ucx_*.dsc")
    tree = work / "trees/ucx"
    tree.parent.mkdir()
    run("dpkg-source", "--no-check", "--no-copy", "--extract", description, tree)
    return tree.parent, description.stem.partition("_")[2]


def serve(work: Path) -> str:
    """Serve a folder, as a bundle's server would; its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(work)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def lay_out(work: Path, release: dict[str, Any]) -> tuple[list[str], str]:
    """Sources, index and interpreter in ``work``/served; the build's mounts, and UCX's commit."""
    served = work / "served"
    files = served / "wheels/files"
    files.mkdir(parents=True)
    (served / "git").mkdir()
    url = serve(served)
    sources = SimpleNamespace(
        **runpy.run_path(str(ROOT / "molecule/serving_image_rocm/files/make_sources.py"))
    )
    trees, version = source_package(work)
    commit = sources.repositories(trees, served / "git", [])["ucx"]
    run(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", files, f"uv=={release['uv']}")
    sources.index(served / "wheels")
    sources.interpreter(served / "python", url)
    texts = {
        "/etc/gitconfig": f'[url "{url}/git/"]\n    insteadOf = https://\n',
        "/etc/pip.conf": f"[global]\nindex-url = {url}/wheels/simple/\ntrusted-host = 127.0.0.1\n",
        "/etc/uv/uv.toml": 'python-downloads-json-url = "/etc/uv/downloads.json"\n',
        "/etc/uv/downloads.json": (served / "python/downloads.json").read_text(),
    }
    mounts = []
    for place, text in texts.items():
        file = work / Path(place).name
        file.write_text(text)
        mounts.append(f"--volume={file}:{place}:ro")
    say(f"UCX {version} from Debian's source package")
    return mounts, commit


def bootstrap(work: Path, buildah: list[str]) -> None:
    """A base image of this system's own release."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    run("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", suite, work / "base.tar")
    container = run(*buildah, "from", "scratch").strip()
    run(*buildah, "add", "--quiet", container, work / "base.tar", "/")
    run(*buildah, "commit", "--quiet", "--rm", container, BASE)


def verdict(buildah: list[str]) -> dict[str, Any]:
    """What the role's image test and ucx_info say in the stage ucx."""
    container = run(*buildah, "from", "--pull-never", "localhost/ucx").strip()
    test = ROOT / "roles/serving_image/files/image_test.py"
    words = [*buildah, "run", "--isolation=chroot", f"--volume={test}:/image_test.py:ro"]
    words += ["--env=PATH=/usr/local/ucx/bin:/usr/bin:/bin", container, "--"]
    python = run(*words, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    asked = json.dumps({"python": python, "wheels": [], "image_test": ASKED})
    found: dict[str, Any] = json.loads(run(*words, "python3", "/image_test.py", stdin=asked, ok=(0, 1)))
    found["info"] = run(*words, "ucx_info", "-v").splitlines()
    devices = run(*words, "ucx_info", "-d").splitlines()
    found["devices"] = sorted({line.split()[-1] for line in devices if "Transport:" in line})
    run(*buildah, "rm", container)
    return found


def main() -> None:
    """Build, look, say."""
    work = Path(sys.argv[1]) if sys.argv[1:] else Path(tempfile.mkdtemp(prefix="build-true-"))
    context = work / "context"
    context.mkdir(parents=True)
    buildah = [
        "buildah",
        "--root",
        f"{work}/store",
        "--runroot",
        f"{work}/run",
        "--storage-driver",
        "overlay",
    ]
    release = yaml.safe_load(RELEASE.read_text())
    flags = [flag for flag in release["sources"]["ucx"]["configure"] if not flag.startswith("--with-rocm")]
    try:
        mounts, commit = lay_out(work, release)
        bootstrap(work, buildah)
        full = json.loads((work / "downloads.json").read_text()).popitem()[1]
        release["python_full"] = f"{full['major']}.{full['minor']}.{full['patch']}"
        release["base_image"]["ref"] = BASE
        shutil.copytree("/usr/local/share/ca-certificates", context / "ca")
        text = (ROOT / "templates/containerfiles" / release["containerfile"]).read_text()
        template = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(text)  # noqa: S701
        for name, configure in {
            "released": flags,
            "no verbs": [f.replace("--with-verbs", "--without-verbs") for f in flags],
        }.items():
            release["sources"]["ucx"] = {
                "url": "https://example.org/ucx.git", "commit": commit, "configure": configure,
            }  # fmt: skip
            (context / "Containerfile").write_text(template.render(release=release))
            for stage in ("base", "tools", "ucx"):
                began = time.monotonic()
                words = [
                    *buildah,
                    "bud",
                    "--isolation=chroot",
                    "--layers",
                    "--pull=false",
                    f"--target={stage}",
                ]
                run(*words, f"--tag=localhost/{stage}", *mounts, context)
                say(f"{name}: stage {stage}: {time.monotonic() - began:.0f} s")
            found = verdict(buildah)
            say(f"{name}: {found['info'][0]} {found['info'][-1]}")
            say(f"{name}: transports with a device here (ucx_info -d): {' '.join(found['devices'])}")
            for check in found["checks"]:
                mark = "ok  " if check["ok"] else "FAIL"
                say(f"{name}: {mark} {check['name']} {check['subject']}: {check['measured']}")
    finally:
        if not sys.argv[1:]:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
