"""Maps the four top-level folders to one package.

kernels/, serve/ and bench/ stand at the top of the repository but are imported as
distill.kernels, distill.serve and distill.bench. They must never be imported by their bare
names: `kernels` is the name of a widely used library that transformers looks for. setuptools
cannot express such a mapping together with automatic discovery in pyproject.toml, and an
explicit list of packages would forget new subpackages in wheels while an editable install
hides it, so discovery and mapping stand here.
"""

from setuptools import find_packages, setup

SIDE_FOLDERS = ("kernels", "serve", "bench")

packages = find_packages(include=["distill", "distill.*"])
package_dir = {"distill": "distill"}
for folder in SIDE_FOLDERS:
    packages += [f"distill.{folder}"] + [f"distill.{folder}.{name}" for name in find_packages(folder)]
    package_dir[f"distill.{folder}"] = folder

# Studies as YAML are data; as a package they travel in the wheel.
packages.append("distill.presets")
package_dir["distill.presets"] = "presets"

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "distill": ["*.yaml"],
        "distill.presets": ["*.yaml"],
        "distill.report": ["*.html", "*.css", "*.js"],
        "distill.study.published": ["*.yaml"],
        "distill.tasks": ["benchmarks/*.yaml"],
    },
)
