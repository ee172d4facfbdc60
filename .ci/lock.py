"""What an installation consists of, from pip's own report.

python .ci/lock.py lock REQUIREMENT...   prints requirements with hashes for `pip install --require-hashes -r`, all but
                                         torch, whose file is another one for each kind of machine
python .ci/lock.py sbom REQUIREMENT...   prints a CycloneDX 1.5 bill of materials
The answer holds for this Python and this platform, which the first line names.
"""

import json
import platform
import re
import subprocess
import sys
import sysconfig

_APART = {"torch"}


def resolved(requirements):
    """pip's report: one entry for each package that a fresh environment would get."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
        *requirements,
    ]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rows = []
    for entry in report["install"]:
        metadata, archive = entry["metadata"], entry["download_info"].get("archive_info")
        if archive is not None:  # the project itself comes from a directory
            name = re.sub(r"[-_.]+", "-", metadata["name"]).lower()
            rows.append((name, metadata["version"], archive["hashes"]["sha256"], metadata))
    return sorted(rows, key=lambda row: row[:2])


def sbom(rows):
    components = []
    for name, version, digest, metadata in rows:
        licence = metadata.get("license_expression") or (metadata.get("license") or "").strip().split("\n")[0][:80]
        components.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version}",
                "hashes": [{"alg": "SHA-256", "content": digest}],
                **({"licenses": [{"license": {"name": licence}}]} if licence else {}),
            }
        )
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def main():
    kind, *requirements = sys.argv[1:]
    rows = resolved(requirements)
    if kind == "sbom":
        print(json.dumps(sbom(rows), indent=1))
        return
    print(
        f"# Python {platform.python_version_tuple()[0]}.{platform.python_version_tuple()[1]} {sysconfig.get_platform()}"
    )
    for name, version, digest, _ in rows:
        if name not in _APART:
            print(f"{name}=={version} --hash=sha256:{digest}")


if __name__ == "__main__":
    main()
